"""Where rows come from: frozen configs whose `load(split)` gives random access to rows, which are dicts.

Splits are "train" and "heldout". A file has only "train"; `HeldOut` divides it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from lmx.data import files
from lmx.data.python_corpus import collect, prepare

Row = files.Row


class Rows(Protocol):
    """Random access to rows; what grain calls a RandomAccessDataSource."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> Row:
        """Row `index`, counted from 0."""


class Source(Protocol):
    """A config that says where rows come from; a frozen dataclass, so that equal sources share what was read."""

    def __hash__(self) -> int:
        """Agrees with equality."""

    def load(self, split: str) -> Rows:
        """The rows of a split.

        Raises:
          ValueError or OSError: the data is missing or unreadable, or has no such split.
        """

    def fingerprint(self) -> str:
        """Changes when the data behind an unchanged config does."""


def fingerprints(config: Any) -> dict[str, str]:
    """Fingerprints of all sources in a config, by the path of their fields: the inputs that its values don't show."""
    found: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if hasattr(value, "load") and hasattr(value, "fingerprint"):
            found[path or type(value).__name__] = value.fingerprint()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
        elif isinstance(value, Mapping):
            for name, item in value.items():
                visit(item, f"{path}.{name}".lstrip("."))
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                visit(item, f"{path}.{index}".lstrip("."))

    visit(config, "")
    return found


def field_of(row: Row, field: str, source: Any, index: int) -> str:
    """The text in a row's field.

    Raises:
      ValueError: the row has no such field, or it holds no text.
    """
    if field not in row:
        raise ValueError(f"row {index} of {source} has no field {field!r}; it has {', '.join(map(repr, row)) or 'none'}")
    value = row[field]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"row {index} of {source}: field {field!r} is not UTF-8 at byte {error.start}") from error
    if not isinstance(value, str):
        raise ValueError(f"row {index} of {source}: field {field!r} holds {type(value).__name__}, not text")
    return value


def check_split(source: Any, split: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, naming the source's splits, for a split it doesn't have."""
    if split not in known:
        hint = "; wrap it in HeldOut(source=...) to hold rows out" if known == ("train",) else ""
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(map(repr, known))}{hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonCorpus:
    """The text that this Python installation carries: rows {"text", "kind", "name"}; needs no download.

    Attributes:
      kind: "prose" (language topics and docstrings) or "code" (source).
      packages: installed packages beside the standard library.
      cache: directory of the prepared data, None = `~/.cache/lmx`.
    """

    kind: str
    packages: tuple[str, ...] = ()
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("prose", "code"):
            raise ValueError(f"kind={self.kind!r} is not one of 'prose', 'code'")

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout", disjoint by document; prepares the data on first use (some seconds)."""
        check_split(self, split, ("train", "heldout"))
        return files.Mapped(prepare.open_split(self.kind, split, packages=self.packages, cache=self.cache), files.decoded)

    def fingerprint(self) -> str:
        """Digest of the Python version and of the files."""
        return collect.corpus_fingerprint(self.packages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
    """Any dataset of TensorFlow Datasets that can be read through `tfds.data_source`.

    Attributes:
      name: "name", "name/config" or "name/config:1.0.0".
      train: TFDS split (or slice, "train[:90%]") read as "train".
      heldout: TFDS split read as "heldout", None = there is none.
      data_dir: where the data is or will be prepared, None = TFDS's own default.
      download: prepare the data if it isn't there.
    """

    name: str
    train: str = "train"
    heldout: str | None = None
    data_dir: Path | None = None
    download: bool = False

    def load(self, split: str) -> Rows:
        """Rows with the dataset's features; bytes that are UTF-8 as text."""
        check_split(self, split, ("train", "heldout") if self.heldout else ("train",))
        directory = None if self.data_dir is None else str(self.data_dir)
        try:
            rows = tfds.data_source(
                self.name, split=self.train if split == "train" else self.heldout, data_dir=directory, download=self.download
            )
        except (tfds.core.DatasetNotFoundError, AssertionError, NotImplementedError, ValueError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"the TFDS dataset {self.name!r} cannot be read from {directory or 'the default data_dir'}: {reason}; "
                "check name and split, or set download=True to prepare it"
            ) from error
        return files.Mapped(rows, files.decoded)

    def fingerprint(self) -> str:
        """The name: TFDS versions are immutable."""
        return self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files:
    """One file, or all that match a pattern, in the order of their names.

    Attributes:
      path: a path or a glob pattern ("data/*.jsonl", "data/**/*.txt").
    """

    path: str

    def fingerprint(self) -> str:
        """Digest of names, sizes and times of the files."""
        states = [(name, (status := Path(name).stat()).st_size, status.st_mtime_ns) for name in files.matching(self.path)]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()


class JsonLines(_Files):
    """Files of one JSON object a line; blank lines are skipped."""

    def load(self, split: str) -> Rows:
        """The rows, under the split "train"."""
        check_split(self, split, ("train",))
        return files.Concatenated([files.JsonLinesFile(name) for name in files.matching(self.path)])


class TextFiles(_Files):
    """UTF-8 text files, one document each: rows {"text", "name"}."""

    def load(self, split: str) -> Rows:
        """The rows, under the split "train"."""
        check_split(self, split, ("train",))
        return files.Mapped(files.matching(self.path), files.read_text)


class Parquet(_Files):
    """Parquet files, one row a row."""

    def load(self, split: str) -> Rows:
        """The rows, under the split "train"."""
        check_split(self, split, ("train",))
        return files.Concatenated([files.ParquetFile(name) for name in files.matching(self.path)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecords(_Files):
    """ArrayRecord files.

    Attributes:
      parse: record -> row; `files.json_record` or `files.text_record`, or a function of your own.
    """

    parse: Callable[[bytes], Row] = files.json_record

    def load(self, split: str) -> Rows:
        """The rows, under the split "train"."""
        check_split(self, split, ("train",))
        return files.Concatenated([files.ArrayRecordFile(name, self.parse) for name in files.matching(self.path)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Divides the split "train" of a source by the text of a field: equal texts always fall on the same side.

    Attributes:
      source: has a split "train".
      field: what decides.
      one_in: every how manieth text is held out.
    """

    source: Source
    field: str = "text"
    one_in: int = 20

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"; reads each row once to decide."""
        check_split(self, split, ("train", "heldout"))
        rows = self.source.load("train")
        digests = (
            hashlib.sha256(field_of(rows[i], self.field, self.source, i).encode("utf-8", "replace")).digest()
            for i in range(len(rows))
        )
        held = [int.from_bytes(digest[:4], "big") % self.one_in == 0 for digest in digests]
        return files.Selected(rows, [index for index, out in enumerate(held) if out == (split == "heldout")])

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limited:
    """Whole rows of a source up to a number of bytes; for evaluations of a known cost.

    Attributes:
      source: any source.
      max_bytes: UTF-8 bytes of `field` in all; rows are taken in order, those that don't fit into what is left are passed over.
      field: what is counted.
    """

    source: Source
    max_bytes: int
    field: str = "text"

    def load(self, split: str) -> Rows:
        """The chosen rows of the split; at least one.

        Raises:
          ValueError: every row alone is longer.
        """
        rows = self.source.load(split)
        sizes = [
            len(field_of(rows[index], self.field, self.source, index).encode("utf-8", "replace")) for index in range(len(rows))
        ]
        chosen: list[int] = []
        left = self.max_bytes
        for index, size in enumerate(sizes):
            if size <= left:
                chosen.append(index)
                left -= size
        if not chosen:
            raise ValueError(
                f"max_bytes={self.max_bytes} is less than the {min(sizes, default=0)} bytes of the shortest row of {self.source}"
            )
        return files.Selected(rows, chosen)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()
