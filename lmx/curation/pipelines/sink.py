"""What a curation writes: ArrayRecord shards, files of what left, and the counts."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from array_record.python import array_record_module

from lmx.curation import storage
from lmx.curation.config import OutputSet
from lmx.curation.document import Document, Drop
from lmx.curation.functions import hashing, pii, records
from lmx.curation.pipelines.flow import CountKey

STATISTICS = "statistics.json"
_WRITER_OPTIONS = "group_size:1"  # random access to single records
_DROP_SHARDS = 8


def shard_path(root: str, name: str, shard: int) -> str:
    """Path of a shard; shards that no document falls into are not written."""
    return storage.join(root, name, f"part-{shard:05d}.arrayrecord")


def _assigned(document: Document, outputs: tuple[OutputSet, ...]) -> Iterator[tuple[tuple[str, int], tuple[str, bytes, int]]]:
    for output in outputs:
        if output.accepts(document):
            shard = int(hashing.unit(document.key, "shard") * output.shards)
            yield (output.name, shard), (document.key, records.to_row(document), len(document.text))


class _WriteShard(beam.DoFn):
    """Writes a shard, sorted by key, and tells its size and digest."""

    def __init__(self, root: str) -> None:
        self._root = root

    def process(self, group: tuple[tuple[str, int], Iterable[tuple[str, bytes, int]]]) -> Iterable[dict[str, Any]]:
        """One shard."""
        (name, shard), rows = group
        ordered = sorted(rows)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "shard"
            writer = array_record_module.ArrayRecordWriter(str(local), _WRITER_OPTIONS)
            for _, row, _ in ordered:
                writer.write(row)
            writer.close()
            data = local.read_bytes()
        path = shard_path(self._root, name, shard)
        storage.write_bytes(path, data)
        yield {
            "set": name,
            "file": f"{name}/part-{shard:05d}.arrayrecord",
            "documents": len(ordered),
            "characters": sum(characters for _, _, characters in ordered),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def write_shards(documents: Any, root: str, outputs: tuple[OutputSet, ...], label: str) -> Any:
    """Adds the shards to the graph; a PCollection of what was written."""
    return (
        documents
        | f"{label}/assign" >> beam.FlatMap(_assigned, outputs)
        | f"{label}/group" >> beam.GroupByKey()
        | f"{label}/shards" >> beam.ParDo(_WriteShard(root))
    )


def _drop_line(item: Drop, names: tuple[str, ...]) -> tuple[tuple[str, int], tuple[int, str, str, str]]:
    """((folder, file), what its lines are sorted by and the line)."""
    row = dataclasses.asdict(item) | {"step": names[item.step]}
    folder = "dropped" if item.kind == "dropped" else "set_aside"
    if folder == "dropped":
        del row["excerpt"]  # a list of decisions; the pages are where they were
    shard = int(hashing.unit(item.key, "drop shard") * _DROP_SHARDS)
    return (folder, shard), (item.step, item.key, item.url, json.dumps(row, ensure_ascii=False))


class _WriteLines(beam.DoFn):
    """Writes a file of JSON lines, sorted by step and key."""

    def __init__(self, root: str) -> None:
        self._root = root

    def process(self, group: tuple[tuple[str, int], Iterable[tuple[int, str, str, str]]]) -> None:
        """One file."""
        (folder, shard), items = group
        text = "".join(f"{line}\n" for *_, line in sorted(items))
        storage.write_bytes(storage.join(self._root, folder, f"part-{shard:05d}.jsonl"), text.encode("utf-8", "backslashreplace"))


def write_drops(drops: Any, root: str, names: tuple[str, ...], label: str) -> None:
    """Adds the files `dropped/` and `set_aside/` to the graph; `names` are those of the steps by place."""
    (
        drops
        | f"{label}/by file" >> beam.Map(_drop_line, names)
        | f"{label}/group" >> beam.GroupByKey()
        | f"{label}/lines" >> beam.ParDo(_WriteLines(root))
    )


def _drop_count(item: Drop) -> tuple[CountKey, int]:
    return (item.step, item.kind, item.reason), 1


def _example(item: Drop) -> tuple[CountKey, tuple[int, str, str, str, str]]:
    order = hashing.hash64(f"example {item.key}") >> 1
    return (item.step, item.kind, item.reason), (order, item.key, item.url, item.detail, item.excerpt)


def _lined(tag: str, item: Any) -> tuple[int, str]:
    return 0, json.dumps([tag, item])


class _WriteStatistics(beam.DoFn):
    """Writes counts, examples and shards as one file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, group: tuple[int, Iterable[str]]) -> Iterable[int]:
        """All of it; a few hundred lines, however large the corpus is."""
        lines = sorted(group[1])
        storage.write_bytes(self._path, ("[" + ",\n".join(lines) + "]\n").encode())
        yield len(lines)


def write_statistics(counts: Any, drops: Any, shards: Any, *, path: str, examples: int, label: str) -> None:
    """Adds the statistics to the graph: sums of the counts, the same examples of drops in every run, the shards."""
    of_drops = drops | f"{label}/count drops" >> beam.Map(_drop_count)
    sums = (counts, of_drops) | f"{label}/all counts" >> beam.Flatten() | f"{label}/sum" >> beam.CombinePerKey(sum)
    shown = (
        drops | f"{label}/examples" >> beam.Map(_example) | f"{label}/choose" >> beam.combiners.Top.SmallestPerKey(max(examples, 1))
    )
    (
        (
            sums | f"{label}/counts" >> beam.Map(_counts_line),
            shown | f"{label}/shown" >> beam.Map(_examples_line),
            shards | f"{label}/written" >> beam.Map(_shards_line),
        )
        | f"{label}/together" >> beam.Flatten()
        | f"{label}/one" >> beam.GroupByKey()
        | f"{label}/file" >> beam.ParDo(_WriteStatistics(path))
    )


def _counts_line(item: tuple[CountKey, int]) -> tuple[int, str]:
    return _lined("count", [*item[0], item[1]])


def _examples_line(item: tuple[CountKey, list[tuple[int, str, str, str, str]]]) -> tuple[int, str]:
    """Examples as the card shows them: without personal data, which the documents may still hold where they are dropped."""
    key, found = item
    scrubbed = [
        {"url": url, "detail": _scrubbed(detail), "excerpt": _scrubbed(excerpt)} for _, _, url, detail, excerpt in sorted(found)
    ]
    return _lined("examples", [*key, scrubbed])


def _scrubbed(text: str) -> str:
    return pii.scrub(text, pii.KINDS, tuple(pii.NATIONAL_IDS))[0]


def _shards_line(item: dict[str, Any]) -> tuple[int, str]:
    return _lined("shard", item)
