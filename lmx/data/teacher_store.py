"""A teacher's view of the rows that a training will read: ArrayRecord shards with a header that says of which rows and whose.

A split's rows are numbered in the order in which a loader gives them. Rows n B .. (n + 1) B are global batch n of the run that
wrote them, of which each of its processes wrote its own part; a shard holds one process's part of some consecutive batches. A
reader may have another batch size and other processes: it asks for rows by number.

A shard is written beside its place and moved there whole, so an interrupted run goes on with the first shard that is missing, and
since a row's record depends on the row alone, the result is the same to the byte.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath

from lmx.core import serialize, storage
from lmx.data.batches import LMBatch
from lmx.data.teacher_form import TeacherForm, TeacherRow

HEADER = "store.json"
FORMAT = 1
_WRITER_OPTIONS = "group_size:1"  # random access to single records
_PREFIX_BYTES = 24  # identity of the store, number of the row, digest of its text


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What a store holds, of which text, and from whom.

    Attributes:
      form: top k or samples.
      vocab_size: V, rows of the teacher's table.
      length: T, tokens of a row.
      rows: rows by split.
      teacher: fingerprint of the model.
      tokenizer: fingerprint of its tokenizer.
      data: fingerprint of the text and of the config that packs it.
      seed: that the rows of "train" were shuffled with; those of "heldout" stand in their own order.
      batch_size: rows of a global batch of the run that wrote it.
      batches_per_shard: batches of which a shard holds a process's part.
      processes: processes of that run.
      sizes: bytes of each shard by name; None until all are there.
      format: version of the layout.
    """

    form: TeacherForm
    vocab_size: int
    length: int
    rows: Mapping[str, int]
    teacher: str
    tokenizer: str
    data: str
    seed: int
    batch_size: int
    batches_per_shard: int
    processes: int
    sizes: Mapping[str, int] | None = None
    format: int = FORMAT

    @property
    def identity(self) -> bytes:
        """Eight bytes that every record begins with, the same exactly in shards that belong together."""
        tree = serialize.to_json(dataclasses.replace(self, sizes=None))
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).digest()[:8]

    def num_shards(self, split: str) -> int:
        """Shards of each process."""
        return -(-self._batches(split) // self.batches_per_shard)

    def shard_name(self, split: str, shard: int, process: int) -> str:
        """File name of a shard."""
        return f"{split}-{shard:06d}-{process:04d}-of-{self.processes:04d}.array_record"

    def shard_rows(self, split: str, shard: int, process: int) -> list[int]:
        """Numbers of the rows in a shard, in order."""
        part = self.batch_size // self.processes
        first = shard * self.batches_per_shard
        batches = range(first, min(first + self.batches_per_shard, self._batches(split)))
        return [batch * self.batch_size + process * part + row for batch in batches for row in range(part)]

    def locate(self, row: int) -> tuple[int, int, int]:
        """(shard, process, place in the shard) of a row."""
        batch, inside = divmod(row, self.batch_size)
        process, place = divmod(inside, self.batch_size // self.processes)
        shard, batch = divmod(batch, self.batches_per_shard)
        return shard, process, batch * (self.batch_size // self.processes) + place

    def _batches(self, split: str) -> int:
        return -(-self.rows[split] // self.batch_size)


class StoreWriter:
    """One process's part of the writing."""

    def __init__(self, directory: epath.PathLike, header: StoreHeader, *, process: int = 0) -> None:
        """Begins a store, or goes on with one that was begun with the same header.

        Raises:
          ValueError: what was begun there is of another teacher, text, form or layout.
        """
        self._directory, self._header, self._process = storage.as_path(directory), header, process
        self._directory.mkdir(parents=True, exist_ok=True)
        if (self._directory / HEADER).exists():
            begun = read_header(self._directory)
            if begun.identity != header.identity:
                raise ValueError(
                    f"{self._directory} holds the beginning of another store ({_difference(begun, header)}); "
                    "run with the same config and processes, or remove the folder"
                )
        elif process == 0:
            storage.write_json(self._directory / HEADER, serialize.to_json(header))

    def first_missing(self, split: str) -> int:
        """The first shard of the split that some process has not written; their number when all are there."""
        for shard in range(self._header.num_shards(split)):
            names = (self._header.shard_name(split, shard, process) for process in range(self._header.processes))
            if not all((self._directory / name).exists() for name in names):
                return shard
        return self._header.num_shards(split)

    def write_shard(self, split: str, shard: int, rows: Iterable[tuple[LMBatch, TeacherRow]]) -> None:
        """Writes this process's part of a shard, its rows in order; an older file is replaced by an equal one.

        Raises:
          ValueError: the number of rows is not that of the shard.
        """
        header = self._header
        numbers = header.shard_rows(split, shard, self._process)
        target = self._directory / header.shard_name(split, shard, self._process)
        with _written_whole(target) as path:
            writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
            for number, (text, row) in zip(numbers, rows, strict=True):
                prefix = header.identity + number.to_bytes(8, "little") + text_digest(text)
                writer.write(prefix + header.form.encode(row, header.vocab_size))
            writer.close()

    def finish(self) -> None:
        """Completes the header, once every process has written its last shard; only process 0 may."""
        names = [
            self._header.shard_name(split, shard, process)
            for split in self._header.rows
            for shard in range(self._header.num_shards(split))
            for process in range(self._header.processes)
        ]
        sizes = {name: (self._directory / name).stat().length for name in names}
        storage.write_json(self._directory / HEADER, serialize.to_json(dataclasses.replace(self._header, sizes=sizes)))


class StoreReader:
    """Random access to the rows of one split of a finished store."""

    def __init__(self, directory: epath.PathLike, split: str = "train") -> None:
        """Opens every shard and looks at its first record, but reads no more.

        Raises:
          ValueError: there is no finished store, it has no such split, or a shard is missing, was cut short or belongs elsewhere.
        """
        self._directory, self.split = storage.as_path(directory), split
        self.header = header = read_header(self._directory)
        if header.sizes is None:
            raise ValueError(f"the store of teacher logits in {self._directory} is not finished; run its stage again, it goes on")
        if split not in header.rows:
            raise ValueError(
                f"the store of teacher logits in {self._directory} has no split {split!r}, only {', '.join(header.rows)}"
            )
        self._shards = [(shard, process) for shard in range(header.num_shards(split)) for process in range(header.processes)]
        names = [header.shard_name(split, *shard) for shard in self._shards]
        for name in names:
            self._check_file(name)
        try:
            self._records = array_record_data_source.ArrayRecordDataSource([str(self._directory / name) for name in names])
            counted = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"a shard of the split {split!r} in {self._directory} is not readable: {error}") from error
        expected = [len(header.shard_rows(split, *shard)) for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(expected)]).tolist()
        if counted != self._starts[-1]:
            raise ValueError(
                f"the shards of the split {split!r} in {self._directory} hold {counted} rows, expected {self._starts[-1]}"
            )
        for index, shard in enumerate(self._shards):
            self._check_first(names[index], self._starts[index], header.shard_rows(split, *shard)[0])

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self.header.rows[self.split]

    def rows(self, numbers: Sequence[int]) -> list[tuple[bytes, TeacherRow]]:
        """The digest of the text, and what was stored, of each row.

        Raises:
          ValueError: a row lies beyond the last one, or its record is damaged.
        """
        beyond = [number for number in numbers if not 0 <= number < self.num_rows]
        if beyond:
            raise ValueError(
                f"row {beyond[0]} was asked of the store in {self._directory}, whose split {self.split!r} has {self.num_rows} "
                "rows; store more of them or train for fewer steps"
            )
        places = [self._place(number) for number in numbers]
        try:
            records = self._records.__getitems__(places)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"rows {numbers[0]}.. of the store in {self._directory} cannot be read: {error}") from error
        return [self._parsed(number, record) for number, record in zip(numbers, records, strict=True)]

    def _place(self, number: int) -> int:
        shard, process, place = self.header.locate(number)
        return self._starts[shard * self.header.processes + process] + place

    def _parsed(self, number: int, record: bytes) -> tuple[bytes, TeacherRow]:
        header = self.header
        self._check_prefix(f"row {number}", record, number)
        try:
            row = header.form.decode(record[_PREFIX_BYTES:], header.length, header.vocab_size)
        except ValueError as error:
            raise ValueError(f"row {number} of the store in {self._directory} is damaged: {error}") from error
        return record[16:_PREFIX_BYTES], row

    def _check_file(self, name: str) -> None:
        path = self._directory / name
        if not path.exists():
            raise ValueError(f"the shard {name} is missing from the store of teacher logits in {self._directory}")
        size, expected = path.stat().length, (self.header.sizes or {}).get(name)
        if size != expected:
            raise ValueError(f"the shard {path} has {size} bytes where {expected} were written: it was cut short or replaced")

    def _check_first(self, name: str, place: int, number: int) -> None:
        try:
            [record] = self._records.__getitems__([place])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the shard {name} in {self._directory} is not readable: {error}") from error
        self._check_prefix(f"the shard {name}", record, number)

    def _check_prefix(self, what: str, record: bytes, number: int) -> None:
        if record[:8] != self.header.identity:
            raise ValueError(
                f"{what} in {self._directory} is not of this store: it was written from another teacher, tokenizer, text or form"
            )
        found = int.from_bytes(record[8:16], "little")
        if found != number:
            raise ValueError(f"{what} in {self._directory} holds row {found} where row {number} belongs")


def read_header(directory: epath.PathLike) -> StoreHeader:
    """The header of a store; ValueError when there is none or it is damaged."""
    path = storage.as_path(directory) / HEADER
    if not path.exists():
        raise ValueError(f"{path.parent} is no store of teacher logits: it has no {HEADER}")
    try:
        header = serialize.from_json(StoreHeader, storage.read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} is no header of a store of teacher logits: {error}") from error
    if header.format != FORMAT:
        raise ValueError(f"{path} is of format {header.format}; this version of lmx reads format {FORMAT}")
    return header


def text_digest(row: LMBatch) -> bytes:
    """Eight bytes that tell a row [T] of text from any other."""
    parts = (row.tokens, row.labels, row.segment_ids, row.positions, row.loss_mask)
    whole = np.concatenate([np.asarray(part, "<i4") for part in parts])
    return hashlib.blake2b(whole.tobytes(), digest_size=8).digest()


@contextlib.contextmanager
def _written_whole(target: epath.Path) -> Any:
    """A path to write a file to, which then appears at the target complete, or not at all."""
    with tempfile.TemporaryDirectory(prefix=".lmx-shard-") as elsewhere:
        local = storage.is_local(target)
        temporary = Path(target.with_name(f".{target.name}.{os.getpid()}.tmp")) if local else Path(elsewhere) / target.name
        try:
            yield temporary
            if local:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            else:
                target.write_bytes(temporary.read_bytes())  # object stores publish an object only when it is complete
        finally:
            temporary.unlink(missing_ok=True)


def _difference(begun: StoreHeader, wanted: StoreHeader) -> str:
    old, new = (dataclasses.replace(header, sizes=None) for header in (begun, wanted))
    differing = [field.name for field in dataclasses.fields(old) if getattr(old, field.name) != getattr(new, field.name)]
    return f"its {', '.join(differing)} differ"
