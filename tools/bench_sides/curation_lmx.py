"""lmx's side of the curation jobs of `tools/bench_data.py`: Beam's local runner, one worker."""

import tempfile
from pathlib import Path
from typing import Any

from lmx.curation.config import Curation, OutputSet
from lmx.curation.functions import extraction, heuristics, pii
from lmx.curation.functions.minhash import MinHash
from lmx.curation.pipelines.near_duplicates import NearDedup
from lmx.curation.pipelines.source import JsonPages
from lmx.curation.run import curate
from tools.bench_sides import curation_protocol as protocol
from tools.bench_sides.turns import Worker, serve


def build(shape: str, folder: Path) -> Worker:
    """The job `shape`, warmed up on a few pages."""
    _left(shape, folder / protocol.WARM_UP)
    return Worker({}, lambda: {"left": _left(shape, folder)})


def _left(job: str, data: Path) -> int:
    """How many documents the job leaves."""
    steps: tuple[Any, ...] = (NearDedup(minhash=MinHash(bands=protocol.BANDS, rows=protocol.ROWS)),)
    if job == "filter":
        scrub = pii.Scrub(kinds=("email", "ip"), national_ids=())
        steps = (extraction.Extract(), heuristics.Heuristics(rules=heuristics.gopher()), scrub)
    source = JsonPages(path=str(data / protocol.FOLDER[job] / "*.jsonl"))
    config = Curation(name="bench", source=source, steps=steps, outputs=(OutputSet(shards=1),), most_set_aside=1.0)
    with tempfile.TemporaryDirectory() as work:
        return curate(config, Path(work) / "out").documents("documents")


if __name__ == "__main__":
    serve(build)
