"""Benchmark decontamination in two passes: how many documents hold each benchmark n-gram, then which documents must go."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import apache_beam as beam

from lmx.curation import storage
from lmx.curation.document import Document, Dropped, drop
from lmx.curation.functions import decontamination
from lmx.curation.functions.decontamination import GramTable
from lmx.curation.functions.records import Fields, from_json
from lmx.curation.pipelines.flow import DROPS, Flow, Resources, counted, label_of

Items = Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkFiles:
    """Benchmark items in files of JSON lines, {"benchmark": name, "text": item}.

    Attributes:
      path: path or pattern, on any filesystem of Beam.
    """

    path: str

    def __call__(self) -> Iterator[tuple[str, str]]:
        """(benchmark, text) of every line."""
        fields = Fields(keep=("benchmark",))
        for path, _ in storage.matching(self.path):
            for number, line in enumerate(storage.read_bytes(path).splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    item = from_json(line, fields)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                yield str(item.meta.get("benchmark", "benchmark")), item.text


class _Table(beam.DoFn):
    """A function over documents that knows the benchmarks' n-grams."""

    def __init__(self, path: str) -> None:
        self._path = path

    def setup(self) -> None:
        """Reads the n-grams."""
        self._table = load_table(self._path)


def load_table(path: str) -> GramTable:
    """The n-grams in a file written by `Decontaminate.prepare`."""
    return decontamination.from_bytes(storage.cached_bytes(path))


class _Collisions(_Table):
    """(n-gram, 1) once for each distinct benchmark n-gram of a document."""

    def process(self, document: Document) -> Iterable[tuple[int, int]]:
        """One document."""
        found = {hit.gram for hit in decontamination.hits(decontamination.words(document.text), self._table)}
        return [(gram, 1) for gram in sorted(found)]


class _DropCollisions(_Table):
    """Drops documents with a collision that is not common usage; the longest one is reported."""

    def __init__(self, path: str, place: int) -> None:
        super().__init__(path)
        self._place = place

    def process(self, document: Document, common: dict[int, int]) -> Iterable[Any]:
        """One document, and the n-grams that are common usage."""
        words = decontamination.words(document.text)
        rare = [hit for hit in decontamination.hits(words, self._table) if hit.gram not in common]
        if not rare:
            yield document
            return
        longest = min(rare, key=lambda hit: (-hit.n, hit.start))
        gram = " ".join(words[longest.start : longest.start + longest.n])
        decision = Dropped("benchmark_collision", f"{self._table.names[longest.owner]}, {longest.n} words: {gram!r}")
        yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, decision))


def _is_common(item: tuple[int, int], threshold: int) -> bool:
    return item[1] >= threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drops documents that share an n-gram with a benchmark, unless it is common usage: in `common_documents` documents or more.

    Attributes:
      items: the benchmarks: a `BenchmarkFiles`, or a function without arguments that gives (benchmark, text) pairs.
      common_documents: AFM has 1,000; a small corpus needs a smaller number. None = no n-gram is common.
      smallest: least n.
      largest: greatest n.
      table: where `prepare` has put the n-grams; "" in a config.
      name: in the card.

    Reference: AFM (2024), arXiv:2407.21075, section 3.1. What is counted (documents) and how text is normalised are our choices.
    """

    items: Callable[[], Items]
    common_documents: int | None = 1_000
    smallest: int = 4
    largest: int = 13
    table: str = ""
    name: str = "decontamination"

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(f"the step {self.name!r} looks for n-grams of {self.smallest} to {self.largest} words: no such n")
        if self.common_documents is not None and self.common_documents < 1:
            raise ValueError(f"the step {self.name!r} has common_documents={self.common_documents}; use None for no exemption")

    def prepare(self, resources: Resources) -> Self:
        """Builds the table of n-grams, which the workers read."""
        table = decontamination.build_table(self.items(), smallest=self.smallest, largest=self.largest)
        resources.tell(
            f"{self.name}: {len(table.hashes):,} n-grams of {len(table.names)} benchmarks; {table.short_items} items have fewer "
            f"than {self.smallest} words and cannot be looked for"
        )
        return dataclasses.replace(self, table=resources.put(f"{self.name}.npz", table.to_bytes()))

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        common: Any = {}
        if self.common_documents is not None:
            common = beam.pvalue.AsDict(
                documents
                | f"{label}/collisions" >> beam.ParDo(_Collisions(self.table))
                | f"{label}/count documents" >> beam.CombinePerKey(sum)
                | f"{label}/common" >> beam.Filter(_is_common, self.common_documents)
            )
        outputs = documents | f"{label}/drop" >> beam.ParDo(_DropCollisions(self.table, place), common).with_outputs(
            DROPS, main="documents"
        )
        return Flow(outputs.documents, (outputs[DROPS],), (counts,))
