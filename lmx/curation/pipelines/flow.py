"""What passes between the steps of a graph: documents, those that left, and counts that add up."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from lmx.curation.document import Document

# (place of the step, what is counted, label) -> number. Kinds: "in" documents, "characters" that they hold, "dropped",
# "set_aside", "added" documents, "noted" (whatever else a step counts), "failed" (a guarantee that did not hold).
CountKey = tuple[int, str, str]
DROPS, COUNTS = "drops", "counts"


@dataclasses.dataclass(frozen=True)
class Flow:
    """What a step leaves.

    Attributes:
      documents: PCollection of Document.
      drops: PCollections of Drop.
      counts: PCollections of (CountKey, int); what is in `drops` is not counted here.
    """

    documents: Any
    drops: tuple[Any, ...] = ()
    counts: tuple[Any, ...] = ()


class Resources(Protocol):
    """Where a step keeps what it prepares before the graph runs."""

    def put(self, name: str, data: bytes) -> str:
        """Writes a file that every worker can read; returns its path."""

    def tell(self, message: str) -> None:
        """Says on the console what is being done."""


@runtime_checkable
class CorpusStep(Protocol):
    """A step that looks at more than one document: a frozen dataclass whose fields are its settings."""

    @property
    def name(self) -> str:
        """Unique in its curation."""

    def expand(self, documents: Any, place: int) -> Flow:
        """Adds the step to the graph; `place` is the step's number in the counts."""


class BundleCounts:
    """Counts of a bundle, handed out at its end: sums don't depend on how documents were bundled."""

    def __init__(self) -> None:
        self._counts: Counter[CountKey] = Counter()

    def add(self, place: int, kind: str, label: str = "", number: int = 1) -> None:
        """Adds to a count."""
        self._counts[place, kind, label] += number

    def enter(self, place: int, document: Document) -> None:
        """Counts a document that comes to a step."""
        self._counts[place, "in", ""] += 1
        self._counts[place, "characters", ""] += len(document.text) + len(document.html)

    def finish(self) -> Iterator[beam.pvalue.TaggedOutput]:
        """The counts as outputs of `finish_bundle`; begins anew."""
        counts, self._counts = self._counts, Counter()
        window = GlobalWindow()
        for item in sorted(counts.items()):
            yield beam.pvalue.TaggedOutput(COUNTS, WindowedValue(item, window.max_timestamp(), (window,)))


class CountIn(beam.DoFn):
    """Passes documents on and counts them as coming to a step."""

    def __init__(self, place: int) -> None:
        self._place = place

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts = BundleCounts()

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        self._counts.enter(self._place, document)
        yield document

    def finish_bundle(self) -> Iterable[Any]:
        """Hands the counts out."""
        return self._counts.finish()


def counted(documents: Any, place: int, name: str) -> tuple[Any, Any]:
    """The documents, and a PCollection of counts."""
    outputs = documents | f"{name}/count" >> beam.ParDo(CountIn(place)).with_outputs(COUNTS, main="documents")
    return outputs.documents, outputs[COUNTS]


def label_of(place: int, name: str) -> str:
    """A step's label in the graph; the progress on the console is read off these."""
    return f"[{place:02d} {name}]"
