"""Text as tokenizers meet it: what UTF-8 can hold, the special tokens in it, and files of untrusted origin."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

SURROGATE = re.compile("[\ud800-\udfff]")
# Texts of special tokens that files without flags leave unmarked; Gemma's `<s>` is the tag of HTML.
LOOKS_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|<(start|end)_of_(turn|image)>")
MAX_FILE_BYTES = 256 * 2**20


def check_text(text: str) -> None:
    """Refuses what UTF-8 cannot hold.

    Raises:
      TypeError: this is not a string.
      ValueError: the text has a lone surrogate, which is no character.
    """
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes strings, not {type(text).__name__}")
    if surrogate := SURROGATE.search(text):
        place = f"{surrogate[0]!r} at character {surrogate.start()}"
        raise ValueError(f"text has the lone surrogate {place}; UTF-8 cannot hold it")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuses ids that name nothing.

    Raises:
      ValueError: an id is negative or not below `vocab_size`.
    """
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(index for index in ids if not 0 <= index < vocab_size)
        raise ValueError(f"id {wrong} is outside the tokenizer's vocabulary of {vocab_size}")


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of `texts`, leftmost first and the longest there; it never matches when there are none."""
    longest_first = sorted((text for text in texts if text), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def split_specials(text: str, specials: Mapping[str, int], pattern: re.Pattern[str]) -> list[str | int]:
    """Cuts `text` into ordinary text and the ids of the specials that it spells; empty texts are left out."""
    parts: list[str | int] = []
    position = 0
    for match in pattern.finditer(text):
        if match.start() > position:
            parts.append(text[position : match.start()])
        parts.append(specials[match[0]])
        position = match.end()
    if position < len(text):
        parts.append(text[position:])
    return parts


def flat(ids_of_parts: Iterable[list[int]]) -> list[int]:
    """The ids of all parts in one list."""
    return [index for ids in ids_of_parts for index in ids]


def runs(parts: Iterable[str | int]) -> Iterator[tuple[str | int, str]]:
    """Each part beside what stands before it: "start" (nothing), "special" or "text"."""
    before = "start"
    for part in parts:
        yield part, before
        if not isinstance(part, str):
            before = "special"
        elif part:
            before = "text"


def read_file(path: Path) -> bytes:
    """The whole file.

    Raises:
      ValueError: there is no such file, or it is larger than any tokenizer.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing, so the tokenizer is incomplete")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than any tokenizer needs; the limit is {MAX_FILE_BYTES}")
    return path.read_bytes()
