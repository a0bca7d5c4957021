"""datatrove's side of the curation jobs of `tools/bench_data.py`: its local executor, one worker."""

import tempfile
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger

from tools.bench_sides import curation_protocol as protocol
from tools.bench_sides.turns import Worker, serve


def build(shape: str, folder: Path) -> Worker:
    """The job `shape`, warmed up on a few pages."""
    logger.disable("datatrove")
    _left(shape, folder / protocol.WARM_UP)
    return Worker({}, lambda: {"left": _left(shape, folder)})


def _left(job: str, data: Path) -> int:
    """How many documents the job leaves."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        {"filter": _filter, "dedup": _dedup}[job](data / protocol.FOLDER[job], work)
        return sum(len(path.read_text().splitlines()) for path in (work / "out").rglob("*.jsonl"))


def _run(*steps: object, tasks: int = 1) -> None:
    LocalPipelineExecutor(pipeline=list(steps), tasks=tasks, workers=1, logging_dir=None, skip_completed=False).run()


def _writer(work: Path) -> JsonlWriter:
    return JsonlWriter(str(work / "out"), compression=None)


def _filter(data: Path, work: Path) -> None:
    _run(
        JsonlReader(str(data), text_key="html", glob_pattern="*.jsonl"),
        Trafilatura(favour_precision=False, deduplicate=False, timeout=10),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        PIIFormatter(),
        _writer(work),
    )


def _dedup(data: Path, work: Path) -> None:
    config = MinhashConfig(n_grams=5, num_buckets=protocol.BANDS, hashes_per_bucket=protocol.ROWS)
    reader = JsonlReader(str(data), glob_pattern="*.jsonl")
    signatures, buckets, remove = (str(work / name) for name in ("signatures", "buckets", "remove"))
    _run(reader, MinhashDedupSignature(signatures, config=config))
    _run(MinhashDedupBuckets(signatures, buckets, config=config), tasks=protocol.BANDS)
    _run(MinhashDedupCluster(buckets, remove, config=config))
    _run(reader, MinhashDedupFilter(remove), _writer(work))


if __name__ == "__main__":
    serve(build)
