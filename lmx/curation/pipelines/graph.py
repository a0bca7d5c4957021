"""The graph of a curation: its steps one after the other, document steps in a row as one node, and what is written."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from lmx.curation import storage
from lmx.curation.config import Curation
from lmx.curation.document import DocumentStep
from lmx.curation.pipelines import sink
from lmx.curation.pipelines.flow import CorpusStep, counted, label_of
from lmx.curation.pipelines.per_document import apply_steps
from lmx.curation.pipelines.source import read_documents


def step_names(curation: Curation) -> tuple[str, ...]:
    """Names of all steps by their places in the counts: reading is 0, writing is last."""
    return ("read", *(step.name for step in curation.steps), "write")


def build(pipeline: Any, curation: Curation, root: str) -> None:
    """Adds a curation to a Beam pipeline.

    Args:
      pipeline: Beam's.
      curation: prepared (`run.prepared`).
      root: folder that is written into.
    """
    label = label_of(0, "read")
    flow = read_documents(pipeline, curation.source, label=label)
    documents, drops, counts = flow.documents, list(flow.drops), list(flow.counts)
    for part in _parts(curation):
        flow = apply_steps(documents, part) if isinstance(part, list) else part[1].expand(documents, part[0])
        documents = flow.documents
        drops += flow.drops
        counts += flow.counts
    place = len(curation.steps) + 1
    label = label_of(place, "write")
    documents, kept = counted(documents, place, label)
    shards = sink.write_shards(documents, root, curation.outputs, label)
    dropped = drops | f"{label}/all drops" >> beam.Flatten()
    sink.write_drops(dropped, root, step_names(curation), f"{label}/drops")
    sink.write_statistics(
        [*counts, kept] | f"{label}/counts" >> beam.Flatten(),
        dropped,
        shards,
        path=storage.join(root, sink.STATISTICS),
        examples=curation.examples,
        label=f"{label}/statistics",
    )


def _parts(curation: Curation) -> Iterator[list[tuple[int, DocumentStep]] | tuple[int, CorpusStep]]:
    """Steps with their places, document steps in a row gathered in a list."""
    row: list[tuple[int, DocumentStep]] = []
    for place, step in enumerate(curation.steps, start=1):
        if not isinstance(step, CorpusStep):
            row.append((place, step))
            continue
        if row:
            yield row
            row = []
        yield place, step
    if row:
        yield row
