"""Readers of the file formats: random access to the rows of a file, one clear sentence for a damaged one."""

import bisect
import glob
import json
import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from array_record.python import array_record_data_source

Row = dict[str, Any]


def matching(pattern: str) -> list[str]:
    """Paths of the files that match, sorted.

    Raises:
      FileNotFoundError: none does.
    """
    names = sorted(name for name in glob.glob(str(Path(pattern).expanduser()), recursive=True) if Path(name).is_file())
    if not names:
        raise FileNotFoundError(f"no file matches {pattern!r} (working directory {Path.cwd()})")
    return names


def decoded(row: Row) -> Row:
    """The row with its bytes as text, where they are UTF-8."""
    return {name: _text(value) if isinstance(value, bytes) else value for name, value in row.items()}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def read_text(name: str) -> Row:
    """A whole text file as {"text", "name"}.

    Raises:
      ValueError: it isn't UTF-8.
    """
    try:
        return {"text": Path(name).read_bytes().decode("utf-8"), "name": name}
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error


def json_record(record: bytes) -> Row:
    """A JSON object as a row.

    Raises:
      ValueError: it is something else.
    """
    row = json.loads(record)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def text_record(record: bytes) -> Row:
    """A UTF-8 text as {"text"}."""
    return {"text": record.decode("utf-8")}


class Mapped:
    """Rows of another sequence, each passed through a function."""

    def __init__(self, items: Sequence[Any], function: Callable[[Any], Row]) -> None:
        self._items, self._function = items, function

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Row:
        _check(index, len(self))
        return self._function(self._items[index])


class Selected:
    """Chosen rows of another sequence."""

    def __init__(self, rows: Any, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        _check(index, len(self))
        return self._rows[self._indices[index]]


class Concatenated:
    """The rows of several files, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        _check(index, len(self))
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


class JsonLinesFile:
    """A file of JSON lines, mapped into memory; only the lines' positions are kept."""

    def __init__(self, name: str) -> None:
        """Finds the lines.

        Raises:
          ValueError: there are none.
        """
        self._name = name
        with open(name, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if Path(name).stat().st_size else b""
        starts, numbers, start = [], [], 0
        for number, line in enumerate(iter(self._data.readline, b"") if isinstance(self._data, mmap.mmap) else (), start=1):
            if line.strip():
                starts.append((start, start + len(line)))
                numbers.append(number)
            start += len(line)
        if not starts:
            raise ValueError(f"{name} has no rows: it is empty")
        self._spans, self._numbers = np.array(starts), np.array(numbers)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Row:
        start, end = self._spans[index]
        try:
            return json_record(self._data[start:end])
        except ValueError as error:
            raise ValueError(f"{self._name}, line {self._numbers[index]}: not a JSON object: {error}") from error


class ParquetFile:
    """A Parquet file; the row group read last is kept."""

    def __init__(self, name: str) -> None:
        """Reads the footer.

        Raises:
          ValueError: the file is no Parquet file or has no rows.
        """
        self._name = name
        try:
            self._file = pyarrow.parquet.ParquetFile(name, memory_map=True)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{name} is not a readable Parquet file: {error}") from error
        metadata = self._file.metadata
        self._ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]).tolist()
        if not metadata.num_rows:
            raise ValueError(f"{name} has no rows")
        self._lock = threading.Lock()
        self._group: tuple[int, pyarrow.Table | None] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        try:
            [row] = self._table(group).slice(index - start, 1).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self._name}, row {index}: row group {group} is damaged: {error}") from error
        return row

    def _table(self, group: int) -> pyarrow.Table:
        with self._lock:
            if self._group[0] != group:
                self._group = (group, self._file.read_row_group(group))
            return self._group[1]


class ArrayRecordFile:
    """An ArrayRecord file whose records are parsed on access."""

    def __init__(self, name: str, parse: Callable[[bytes], Row]) -> None:
        """Opens the file.

        Raises:
          ValueError: it is no ArrayRecord file or has no records.
        """
        self._name, self._parse = name, parse
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(name)
            size = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{name} is not a readable ArrayRecord file: {error}") from error
        if not size:
            raise ValueError(f"{name} has no records")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        try:
            return self._parse(self._records[index])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self._name}, record {index}: {error}") from error


def _check(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"row {index} of {length}")
