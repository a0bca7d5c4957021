"""Scores by any callable, in batches: a model on an accelerator reads many documents at once."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from lmx.curation.document import Document, Dropped, drop, set_aside
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of

ScoreTexts = Callable[[Sequence[str]], Sequence[float]]


class Scorer(Protocol):
    """What gives texts a score: a frozen dataclass whose `open` loads it, once a worker."""

    def open(self) -> ScoreTexts:
        """texts -> a number for each, which must depend on that text alone, not on its company."""


class _ScoreBatches(beam.DoFn):
    """Gathers documents of a bundle, scores them together and judges each."""

    def __init__(self, place: int, step: "Score") -> None:
        self._place, self._step = place, step

    def setup(self) -> None:
        """Loads the scorer."""
        self._scores = self._step.scorer.open()

    def start_bundle(self) -> None:
        """Begins a batch."""
        self._waiting: list[Document] = []

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        self._waiting.append(document)
        if len(self._waiting) >= self._step.batch:
            yield from self._judged()

    def finish_bundle(self) -> Iterable[Any]:
        """Scores the last batch."""
        window = GlobalWindow()
        for item in self._judged():
            if isinstance(item, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(item.tag, WindowedValue(item.value, window.max_timestamp(), (window,)))
            else:
                yield WindowedValue(item, window.max_timestamp(), (window,))

    def _judged(self) -> list[Any]:
        documents, self._waiting = self._waiting, []
        if not documents:
            return []
        scores = self._scores([document.text for document in documents])
        if len(scores) != len(documents):
            raise RuntimeError(f"the scorer of the step {self._step.name!r} gave {len(scores)} scores for {len(documents)} texts")
        return [self._verdict(document, float(score)) for document, score in zip(documents, scores, strict=True)]

    def _verdict(self, document: Document, score: float) -> Any:
        step = self._step
        if score != score:
            return beam.pvalue.TaggedOutput(DROPS, set_aside(self._place, document, ValueError("the score is not a number")))
        if step.least is not None and score < step.least:
            decision = Dropped(f"{step.field}_too_low", f"{score:.4f}, at least {step.least}")
            return beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, decision))
        return document.tell(**{step.field: round(score, 4)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Sets a field to a score, and drops documents below a limit.

    Attributes:
      scorer: what gives the score; `scorers.ModelScorer` for an lmx model with a scalar head.
      field: where the score goes.
      least: None = drop none (let `select.KeepShare` follow).
      batch: documents scored at once.
      name: in the card.
    """

    scorer: Scorer
    field: str = "quality"
    least: float | None = None
    batch: int = 64
    name: str = "score"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"the step {self.name!r} has batch={self.batch}; it must be at least 1")

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        outputs = documents | f"{label}/score" >> beam.ParDo(_ScoreBatches(place, self)).with_outputs(DROPS, main="documents")
        return Flow(outputs.documents, (outputs[DROPS],), (counts,))
