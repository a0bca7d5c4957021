"""Metadata of a GGUF file: typed values by key, arrays left in the file until they are asked for."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmx.convert.gguf.cursor import Cursor
from lmx.convert.source import ConversionError

# Numbers of the format's value types, and how `struct` and numpy write them (little-endian).
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
_BYTES = {kind: np.dtype("<" + form).itemsize for kind, form in NUMBERS.items()} | {BOOL: 1}


@dataclasses.dataclass(frozen=True)
class ArrayReference:
    """Where an array's items begin in the file, their type and number."""

    position: int
    kind: int
    count: int


class Metadata(Mapping[str, Any]):
    """Key -> int, float, bool, str or list of them. A list is read from the file when it is first asked for, and then kept."""

    def __init__(self, path: Path) -> None:
        """Empty metadata of a file."""
        self._path = path
        self._values: dict[str, Any] = {}

    def add(self, key: str, value: Any) -> None:
        """Adds a value or a reference to an array."""
        self._values[key] = value

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, ArrayReference):
            value = self._values[key] = _read_array(self._path, value, key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def length(self, key: str) -> int | None:
        """Number of items of an array, without reading it; None where the value is none."""
        value = self._values.get(key)
        return value.count if isinstance(value, ArrayReference) else len(value) if isinstance(value, list) else None


def read_value(cursor: Cursor, key: str) -> Any:
    """The next typed value; an array is checked and passed over.

    Raises:
      ConversionError: it is of an unknown type, an array of arrays, or does not fit into the file.
    """
    what = f"the value of {key!r}"
    kind = cursor.number("I", f"the type of {key!r}")
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind], what)
    if kind == BOOL:
        return _bool(cursor.number("B", what), cursor.path, key)
    if kind == STRING:
        return cursor.text(what)
    if kind == ARRAY:
        return _pass_array(cursor, key)
    raise cursor.error(f"{what} has the unknown type {kind}")


def _pass_array(cursor: Cursor, key: str) -> ArrayReference:
    what = f"the array {key!r}"
    kind, count = cursor.number("I", f"the type of {what}"), cursor.number("Q", f"the length of {what}")
    reference = ArrayReference(cursor.position, kind, count)
    if kind == ARRAY:
        raise cursor.error(f"{what} holds arrays; no key of a language model does, and lmx does not read them")
    if kind == STRING:
        cursor.require(8 * count, f"{what} of {count:,} strings")
        cursor.texts(count, what)
    elif kind in _BYTES:
        cursor.skip(_BYTES[kind] * count, f"{what} of {count:,} items")
    else:
        raise cursor.error(f"{what} has items of the unknown type {kind}")
    return reference


def _read_array(path: Path, reference: ArrayReference, key: str) -> list[Any]:
    with open(path, "rb", buffering=1 << 20) as file:
        size = file.seek(0, 2)
        cursor = Cursor(file, path, size)
        cursor.skip(reference.position, f"all before the array {key!r}")
        if reference.kind == STRING:
            return [cursor.text(f"an item of {key!r}") for _ in range(reference.count)]
        data = cursor.take(_BYTES[reference.kind] * reference.count, f"the array {key!r}")
    if reference.kind == BOOL:
        return [_bool(item, path, key) for item in data]
    values: list[Any] = np.frombuffer(data, "<" + NUMBERS[reference.kind]).tolist()
    return values


def _bool(value: int, path: Path, key: str) -> bool:
    if value > 1:
        raise ConversionError(f"{path}: the value of {key!r} is {value}, which is no boolean")
    return bool(value)
