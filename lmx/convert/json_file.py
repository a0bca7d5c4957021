"""JSON objects from files that somebody else wrote: bounded, without duplicate keys, one sentence for whatever is wrong."""

import collections
import json
from pathlib import Path
from typing import Any

from lmx.convert.source import ConversionError

MAX_BYTES = 32 << 20
"""Longest JSON that is read: an index of 300,000 tensors is smaller."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ConversionError: it is not a regular file, too long, or not one JSON object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ConversionError(f"{path} is not a regular file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConversionError(f"{path} has {size} bytes; a JSON file of a checkpoint has at most {MAX_BYTES}")
    return parse_object(path.read_bytes(), str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """One JSON object.

    Args:
      data: UTF-8.
      where: the subject of the sentence.

    Raises:
      ConversionError: it is not valid JSON, nested too deeply, no object, or has the same key twice.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_int=_short_integer)
    except RecursionError:
        raise ConversionError(f"{where} is nested too deeply to be the JSON of a checkpoint") from None
    except ValueError as error:
        raise ConversionError(f"{where} ({len(data)} bytes) is not valid JSON: {error}; it may have been cut short") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{where} holds a JSON {type(value).__name__}, but an object was expected")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        count = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"the key {count.most_common(1)[0][0]!r} stands there twice")
    return result


def _short_integer(text: str) -> int:
    if len(text) > 30:
        raise ValueError(f"the integer {text[:20]}... has {len(text)} digits")
    return int(text)
