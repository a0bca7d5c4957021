"""`kind.json`, the file that says of which kind a saved tokenizer is, with the digests of the files beside it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.tokenizer.text import read_file

KIND_FILE = "kind.json"


def write_kind(directory: Path, kind: str, files: Mapping[str, bytes], fields: Mapping[str, Any]) -> None:
    """Writes the kind's own files, then `kind.json` with their digests and the kind's other fields."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps({"kind": kind, "files": digests, **fields}, indent=2, ensure_ascii=False)
    (directory / KIND_FILE).write_text(text + "\n", encoding="utf-8")


def read_kind(directory: Path) -> dict[str, Any]:
    """The content of `kind.json`.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: the file is damaged.
    """
    path = directory / KIND_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer in {directory}: {path.name} is missing")
    try:
        description = json.loads(read_file(path))
        if not isinstance(description["kind"], str) or not isinstance(description.get("files", {}), dict):
            raise TypeError("kind must be a string and files an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: expected {{"kind": ...}} ({error})') from error
    return description


def checked_file(directory: Path, name: str, description: Mapping[str, Any]) -> bytes:
    """A file that `kind.json` lists.

    Raises:
      ValueError: it is missing, or not the one that was saved.
    """
    data = read_file(directory / name)
    expected = str(description.get("files", {}).get(name, ""))
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise ValueError(f"{directory / name} is damaged: {len(data)} bytes with digest {digest[:12]}, not {expected[:12]}")
    return data


def checked_fields(
    directory: Path, description: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """The kind's own fields of `kind.json`, each of the type asked for.

    Raises:
      ValueError: one is missing or of another type.
    """
    for name, kind in fields.items():
        value = description.get(name, KeyError)
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{directory / KIND_FILE} is damaged: {name} is {description.get(name, 'missing')!r}")
    return {name: description[name] for name in fields}


def checked_specials(directory: Path, value: list[Any]) -> tuple[tuple[str, int], ...]:
    """Pairs of a special's text and id, as `kind.json` lists them.

    Raises:
      ValueError: something else stands there.
    """
    pairs = [tuple(pair) if isinstance(pair, list) else pair for pair in value]
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            raise ValueError(f"{directory / KIND_FILE} is damaged: specials has {pair!r}, not [text, id]")
    return tuple(pairs)
