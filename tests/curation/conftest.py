"""Runs single steps on Beam's local runner, and the sample crawl once for all tests that look at its outcome."""

import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from configs.data.sample_crawl import get_config
from lmx.curation.card import Card
from lmx.curation.config import Curation
from lmx.curation.document import Document, Drop
from lmx.curation.functions.records import document_key
from lmx.curation.pipelines.flow import CorpusStep
from lmx.curation.pipelines.per_document import apply_steps
from lmx.curation.run import Folder, beam_options, choose_runner, curate

BLOCKS = 5


@dataclasses.dataclass
class Result:
    """What a step left: documents by key, drops by key, and the sums of its counts."""

    documents: dict[str, Document]
    drops: dict[str, Drop]
    counts: dict[tuple[int, str, str], int]

    @property
    def texts(self) -> set[str]:
        return {document.text for document in self.documents.values()}


def document(text: str, *, url: str = "", timestamp: str = "", **meta: Any) -> Document:
    return Document(key=document_key(url, timestamp, text), url=url, timestamp=timestamp, text=text, meta=meta)


def _store(items: list[Any], path: str) -> None:
    Path(path).write_bytes(pickle.dumps(items))


def _stored(collections: Sequence[Any], label: str, path: Path, pipeline: Any) -> None:
    together = list(collections) or [pipeline | f"{label} none" >> beam.Create([])]
    together | f"{label} all" >> beam.Flatten() | f"{label} list" >> beam.combiners.ToList() | label >> beam.Map(_store, str(path))


@pytest.fixture
def run_step(tmp_path: Path) -> Callable[..., Result]:
    """(step, documents) -> Result; drops without keys of documents are kept by their own."""

    def run(step: Any, documents: Sequence[Document], beam_arguments: Sequence[str] = ()) -> Result:
        if hasattr(step, "prepare"):
            step = step.prepare(Folder(str(tmp_path / "prepared")))
        options = beam_options(beam_arguments)
        pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
        source = pipeline | "documents" >> beam.Create(list(documents)) | "spread" >> beam.Reshuffle()
        flow = step.expand(source, 1) if isinstance(step, CorpusStep) else apply_steps(source, [(1, step)])
        _stored([flow.documents], "kept", tmp_path / "kept", pipeline)
        _stored(flow.drops, "drops", tmp_path / "drops", pipeline)
        _stored(flow.counts, "counts", tmp_path / "counts", pipeline)
        pipeline.run().wait_until_finish()
        kept, drops, counts = (pickle.loads((tmp_path / name).read_bytes()) for name in ("kept", "drops", "counts"))
        sums: dict[tuple[int, str, str], int] = {}
        for key, number in counts:
            sums[key] = sums.get(key, 0) + number
        return Result({item.key: item for item in kept}, {item.key: item for item in drops}, sums)

    return run


@dataclasses.dataclass(frozen=True)
class Curated:
    """A finished curation of the sample crawl."""

    config: Curation
    folder: Path
    card: Card

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Rows of the files in `dropped` or `set_aside`."""
        return [json.loads(line) for path in sorted((self.folder / name).iterdir()) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """The sample crawl, 500 pages, curated in this process."""
    config = get_config(blocks=BLOCKS)
    folder = tmp_path_factory.mktemp("curation") / "sample"
    return Curated(config, folder, curate(config, folder))


@pytest.fixture
def make_document() -> Callable[..., Document]:
    """(text, url=, timestamp=, **meta) -> Document."""
    return document
