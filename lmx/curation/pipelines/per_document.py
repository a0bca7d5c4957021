"""Consecutive steps of one document each, run as one function of Beam."""

from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam

from lmx.curation.document import Changed, Document, DocumentStep, Dropped, drop, set_aside
from lmx.curation.pipelines.flow import COUNTS, DROPS, BundleCounts, Flow, label_of


class Apply(beam.DoFn):
    """Passes each document through the steps, up to the first that drops it or fails with it."""

    def __init__(self, steps: Sequence[tuple[int, DocumentStep]]) -> None:
        self._steps = tuple(steps)

    def setup(self) -> None:
        """Loads what the steps need."""
        self._functions = [(place, step.open()) for place, step in self._steps]

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts = BundleCounts()

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        for place, function in self._functions:
            self._counts.enter(place, document)
            try:
                outcome = function(document)
            except Exception as error:  # parsers break on the web's pages in ways that nobody lists: told, counted, never fatal
                yield beam.pvalue.TaggedOutput(DROPS, set_aside(place, document, error))
                return
            if isinstance(outcome, Dropped):
                yield beam.pvalue.TaggedOutput(DROPS, drop(place, document, outcome))
                return
            if isinstance(outcome, Changed):
                for label, number in outcome.counts.items():
                    self._counts.add(place, "noted", label, number)
                outcome = outcome.document
            document = outcome
        yield document

    def finish_bundle(self) -> Iterable[Any]:
        """Hands the counts out."""
        return self._counts.finish()


def apply_steps(documents: Any, steps: Sequence[tuple[int, DocumentStep]]) -> Flow:
    """Adds consecutive document steps to the graph, as one node.

    Args:
      documents: PCollection of Document.
      steps: (place, step), in order.
    """
    label = " ".join(label_of(place, step.name) for place, step in steps)
    outputs = documents | label >> beam.ParDo(Apply(steps)).with_outputs(DROPS, COUNTS, main="documents")
    return Flow(outputs.documents, (outputs[DROPS],), (outputs[COUNTS],))
