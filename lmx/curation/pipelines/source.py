"""Where pages are read: JSON lines and WARC files on any filesystem of Beam; what can't be read is set aside with its reason."""

import bz2
import dataclasses
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from lmx.curation import storage
from lmx.curation.document import EXCERPT, RAW_EXCERPT, Document, Drop
from lmx.curation.functions import warc
from lmx.curation.functions.records import Fields, Malformed, document_key, from_json
from lmx.curation.pipelines.flow import COUNTS, DROPS, BundleCounts, Flow

_OPENERS: Mapping[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that gave no document.

    Attributes:
      reason: a word that can be counted.
      detail: what is wrong with it.
      data: its first bytes.
    """

    reason: str
    detail: str
    data: bytes = b""


# Where a record stands, and what came of it: None for a record that is no page.
Record = tuple[str, Document | Unreadable | None]


class Source(Protocol):
    """Where documents come from: a frozen dataclass."""

    def check(self) -> None:
        """Raises ValueError when there is nothing to read; called before the graph is built."""

    def read(self, pipeline: Any, label: str) -> Any:
        """A PCollection of Record."""


class _Split(beam.DoFn):
    """Documents of records, and drops for the others."""

    def __init__(self, place: int, kind: str) -> None:
        self._place, self._kind = place, kind

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts = BundleCounts()

    def process(self, record: Record) -> Iterable[Any]:
        """One record."""
        origin, content = record
        if content is None:
            self._counts.add(self._place, "noted", "not_a_page")
            return
        self._counts.add(self._place, "in")
        if isinstance(content, Document):
            self._counts.add(self._place, "characters", "", len(content.html) + len(content.text))
            yield content
            return
        excerpt = content.data[:RAW_EXCERPT].decode("utf-8", "backslashreplace")
        key = document_key(origin, content.reason, excerpt)
        yield beam.pvalue.TaggedOutput(
            DROPS, Drop(self._place, self._kind, content.reason, content.detail[:EXCERPT], key, origin, excerpt)
        )

    def finish_bundle(self) -> Iterable[Any]:
        """Hands the counts out."""
        return self._counts.finish()


def read_documents(pipeline: Any, source: Source, *, label: str, place: int = 0, kind: str = "set_aside") -> Flow:
    """Adds a source to the graph.

    Args:
      pipeline: Beam's.
      source: what is read.
      label: in the graph.
      place: of the step in the counts.
      kind: of the drops: "set_aside", or "unread" beside the corpus.
    """
    outputs = source.read(pipeline, label) | f"{label}/split" >> beam.ParDo(_Split(place, kind)).with_outputs(
        DROPS, COUNTS, main="documents"
    )
    return Flow(outputs.documents, (outputs[DROPS],), (outputs[COUNTS],))


def parsed_line(origin: str, line: bytes, fields: Fields) -> Record | None:
    """The record of a JSON line, None for a blank one."""
    if not line.strip():
        return None
    try:
        return origin, from_json(line, fields)
    except Malformed as error:
        return origin, Unreadable(error.reason, str(error), line[:RAW_EXCERPT])


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _parsed(item: tuple[str, bytes], fields: Fields) -> Iterator[Record]:
    path, line = item
    if (record := parsed_line(_base_name(path), line, fields)) is not None:
        yield record


def _ending(path: str) -> str:
    return path[max(path.rfind("."), 0) :].lower()


def _compressed_lines(path: str, fields: Fields) -> Iterator[Record]:
    """Records of a compressed file, up to where it is damaged."""
    name = _base_name(path)
    try:
        # Not Beam's decompression, which takes a file that was cut short for a whole one.
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file, _OPENERS[_ending(path)](file) as lines:
            for line in lines:
                if (record := parsed_line(name, line, fields)) is not None:
                    yield record
    except (OSError, EOFError, zlib.error, BeamIOError) as error:
        yield name, Unreadable("file_damaged", f"the rest of the file cannot be decompressed: {error}")


def _check_files(pattern: str) -> list[str]:
    files = storage.matching(pattern)
    if not any(size for _, size in files):
        raise ValueError(f"the source is empty: {len(files)} files match {pattern!r}, all of 0 bytes")
    return [path for path, _ in files]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonPages:
    """Files of JSON lines, a page or a text a line; .gz and .bz2 are decompressed.

    Attributes:
      path: path or pattern.
      fields: names of the fields.
    """

    path: str
    fields: Fields = Fields()

    def check(self) -> None:
        """As `Source.check`."""
        _check_files(self.path)

    def read(self, pipeline: Any, label: str) -> Any:
        """As `Source.read`."""
        files = _check_files(self.path)
        packed = [path for path in files if _ending(path) in _OPENERS]
        plain = [path for path in files if _ending(path) not in _OPENERS]
        lines = (
            pipeline
            | f"{label}/files" >> beam.Create(plain)
            | f"{label}/lines" >> beam.io.ReadAllFromText(coder=beam.coders.BytesCoder(), with_filename=True)
            | f"{label}/parse" >> beam.FlatMap(_parsed, self.fields)
        )
        compressed = (
            pipeline
            | f"{label}/compressed files" >> beam.Create(packed)
            | f"{label}/spread" >> beam.Reshuffle()
            | f"{label}/decompress" >> beam.FlatMap(_compressed_lines, self.fields)
        )
        return (lines, compressed) | f"{label}/both" >> beam.Flatten()


def warc_records(name: str, stream: Any) -> Iterator[Record]:
    """Records of a WARC file."""
    for item in warc.records(stream):
        if isinstance(item, Malformed):
            yield name, Unreadable(item.reason, str(item))
            continue
        headers, block = item
        try:
            yield name, warc.page(headers, block)
        except Malformed as error:
            yield name, Unreadable(error.reason, str(error), block[:RAW_EXCERPT])


def _warc_file(path: str) -> Iterator[Record]:
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield from warc_records(_base_name(path), io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file)
    except (OSError, BeamIOError) as error:
        yield _base_name(path), Unreadable("file_damaged", f"the rest of the file cannot be read: {error}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarcPages:
    """WARC files, plain or gzipped record by record; a file is one worker's.

    Attributes:
      path: path or pattern.
    """

    path: str

    def check(self) -> None:
        """As `Source.check`."""
        _check_files(self.path)

    def read(self, pipeline: Any, label: str) -> Any:
        """As `Source.read`."""
        return (
            pipeline
            | f"{label}/files" >> beam.Create(_check_files(self.path))
            | f"{label}/spread" >> beam.Reshuffle()
            | f"{label}/records" >> beam.FlatMap(_warc_file)
        )
