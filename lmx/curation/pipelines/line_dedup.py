"""Line dedup: lines that are seen too often in a bucket of documents are taken out of all of them."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from lmx.curation.document import Document, Dropped, drop
from lmx.curation.functions import hashing, lines
from lmx.curation.pipelines.flow import DROPS, BundleCounts, Flow, counted, label_of

_Line = tuple[int, int]  # bucket and hash of the line


def _occurrences(document: Document, buckets: int) -> Iterator[tuple[_Line, tuple[str, int]]]:
    """((bucket, line), (document's key, how often it stands there)) for each line of a document."""
    bucket = int(hashing.unit(document.key, "line bucket") * buckets)
    found = Counter(value for line in document.text.split("\n") if (value := lines.line_hash(line)) is not None)
    for value, count in found.items():
        yield (bucket, value), (document.key, count)


def _too_frequent(group: tuple[_Line, Iterable[tuple[str, int]]], most: int) -> Iterator[tuple[str, int]]:
    """(document's key, line) for a line seen more than `most` times; two passes, so a line seen everywhere needs no memory."""
    (_, line), occurrences = group
    sums = itertools.accumulate(count for _, count in occurrences)
    if any(total > most for total in sums):
        for key, _ in occurrences:
            yield key, line


class _TakeOut(beam.DoFn):
    """Documents joined with the lines to take out of them."""

    def __init__(self, place: int) -> None:
        self._place = place

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts = BundleCounts()

    def process(self, joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterable[Any]:
        """The documents of one key and their lines."""
        _, groups = joined
        removed = frozenset(groups["lines"])
        for document in groups["documents"]:
            text, count = lines.without(document.text, removed) if removed else (document.text, 0)
            if not text:
                yield beam.pvalue.TaggedOutput(
                    DROPS, drop(self._place, document, Dropped("no_line_left", f"{count} lines, all frequent"))
                )
                continue
            if count:
                self._counts.add(self._place, "noted", "lines", count)
            yield dataclasses.replace(document, text=text) if count else document

    def finish_bundle(self) -> Iterable[Any]:
        """Hands the counts out."""
        return self._counts.finish()


def _by_key(document: Document) -> tuple[str, Document]:
    return document.key, document


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineDedup:
    """Takes out lines that are seen more than `most` times in a bucket, every one of them.

    Attributes:
      most: a line seen just as often stays.
      buckets: documents are spread over as many by their keys. Llama 3.1 has 30 million documents in each.
      name: in the card.

    Reference: Llama 3.1 (2024), arXiv:2407.21783, section 3.1.1; Wenzek et al. (2020), arXiv:1911.00359.
    """

    most: int = 6
    buckets: int = 1
    name: str = "line_dedup"

    def __post_init__(self) -> None:
        if self.most < 1 or self.buckets < 1:
            raise ValueError(f"the step {self.name!r} has most={self.most} and buckets={self.buckets}; both must be at least 1")

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        frequent = (
            documents
            | f"{label}/lines" >> beam.FlatMap(_occurrences, self.buckets)
            | f"{label}/group" >> beam.GroupByKey()
            | f"{label}/frequent" >> beam.FlatMap(_too_frequent, self.most)
        )
        keyed = documents | f"{label}/key" >> beam.Map(_by_key)
        outputs = (
            {"documents": keyed, "lines": frequent}
            | f"{label}/join" >> beam.CoGroupByKey()
            | f"{label}/take out" >> beam.ParDo(_TakeOut(place)).with_outputs(DROPS, "counts", main="documents")
        )
        return Flow(outputs.documents, (outputs[DROPS],), (counts, outputs["counts"]))
