"""Curation documents a second: lmx on Beam's local runner against datatrove, on the same pages and the nearest equal steps.

    .venv/bin/python tools/bench_curation.py --pages 3000 --repeats 3

Two jobs, each in a process of its own, the two sides in turns: "filter" (read JSON lines, extract with trafilatura, Gopher's
rules, scrub personal data, write) and "dedup" (MinHash of 5-grams over the extracted texts, 14 bands of 8, keep one of each
cluster). One worker each. Only the job is timed, not the imports. What differs: datatrove splits words with spaCy and runs
trafilatura in a second process that it can stop; lmx splits at white space, verifies pairs, finds components in a distributable
way, counts every drop with its reason and writes sorted ArrayRecord shards and a card.
Needs the extras `curation` and `bench`.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

from lmx.curation.config import Curation, OutputSet
from lmx.curation.functions import extraction, heuristics, pii
from lmx.curation.functions.minhash import MinHash
from lmx.curation.pipelines.near_duplicates import NearDedup
from lmx.curation.pipelines.source import JsonPages
from lmx.curation.run import curate
from lmx.curation.sample import crawl, prose

BANDS, ROWS = 14, 8


def write_input(folder: Path, pages: int) -> None:
    """The sample crawl's pages in `pages.jsonl` and their paragraphs in `texts.jsonl`; no broken records."""
    (folder / "html").mkdir()
    (folder / "text").mkdir()
    blocks = -(-pages // crawl.BLOCK)
    found = [page for number in range(blocks) for page in crawl.block(number, 0)][:pages]
    with open(folder / "html" / "pages.jsonl", "w") as html_file, open(folder / "text" / "texts.jsonl", "w") as text_file:
        for index, page in enumerate(found):
            row = {"id": str(index), "url": page.truth.url, "timestamp": page.row["timestamp"]}
            html_file.write(json.dumps({**row, "html": page.row["html"]}) + "\n")
            text = extraction.extract(str(page.row["html"]))[0] or "\n".join(prose.article(str(index), "travel"))
            text_file.write(json.dumps({**row, "text": text}) + "\n")


def lmx_job(job: str, data: Path, work: Path) -> int:
    """Runs lmx; returns how many documents are left."""
    if job == "filter":
        source = JsonPages(path=str(data / "html" / "*.jsonl"))
        steps = (
            extraction.Extract(),
            heuristics.Heuristics(rules=heuristics.gopher()),
            pii.Scrub(kinds=("email", "ip"), national_ids=()),
        )
    else:
        source = JsonPages(path=str(data / "text" / "*.jsonl"))
        steps = (NearDedup(minhash=MinHash(bands=BANDS, rows=ROWS)),)  # type: ignore[assignment]
    config = Curation(name="bench", source=source, steps=steps, outputs=(OutputSet(shards=1),), most_set_aside=1.0)
    return curate(config, work / "out").documents("documents")


def datatrove_job(job: str, data: Path, work: Path) -> int:
    """Runs datatrove; returns how many documents are left."""

    def run(*pipeline: object) -> None:
        LocalPipelineExecutor(pipeline=list(pipeline), tasks=1, workers=1, logging_dir=None, skip_completed=False).run()

    writer = JsonlWriter(str(work / "out"), compression=None)
    if job == "filter":
        run(
            JsonlReader(str(data / "html"), text_key="html", glob_pattern="*.jsonl"),
            Trafilatura(favour_precision=False, deduplicate=False, timeout=10),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            PIIFormatter(),
            writer,
        )
    else:
        config = MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS)
        reader = JsonlReader(str(data / "text"), glob_pattern="*.jsonl")
        run(reader, MinhashDedupSignature(str(work / "signatures"), config=config))
        LocalPipelineExecutor(
            pipeline=[MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)],
            tasks=BANDS,
            workers=1,
            skip_completed=False,
        ).run()
        run(MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config))
        run(reader, MinhashDedupFilter(str(work / "remove")), writer)
    return sum(len(path.read_text().splitlines()) for path in (work / "out").rglob("*.jsonl"))


SIDES: dict[str, Callable[[str, Path, Path], int]] = {"lmx": lmx_job, "datatrove": datatrove_job}


@dataclasses.dataclass(frozen=True)
class Timing:
    """One run of one side: seconds of the job, and documents that are left."""

    seconds: float
    left: int


def measure(side: str, job: str, data: Path) -> Timing:
    """Runs a side in a new process, which times itself."""
    command = [sys.executable, __file__, "--side", side, "--job", job, "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3_600)
    if done.returncode:
        raise SystemExit(f"{side} failed at {job}:\n{done.stderr[-3000:]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measures both sides in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=3_000, help="pages of the sample crawl (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side and job (default: %(default)s)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=("filter", "dedup"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as work:
            started = time.perf_counter()
            left = SIDES[options.side](options.job, options.data, Path(work))
            print(json.dumps(dataclasses.asdict(Timing(time.perf_counter() - started, left))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_input(data, options.pages)
        for job in ("filter", "dedup"):
            timings: dict[str, list[Timing]] = {side: [] for side in SIDES}
            for _ in range(options.repeats):
                for side, found in timings.items():
                    found.append(measure(side, job, data))
            report(job, options.pages, timings)


def report(job: str, pages: int, timings: dict[str, list[Timing]]) -> None:
    """Prints documents a second, the median and the range, of each side."""
    rates = {side: sorted(pages / timing.seconds for timing in found) for side, found in timings.items()}
    for side, found in rates.items():
        print(
            f"{job:6}  {side:9}  {statistics.median(found):7.0f} documents/s  ({found[0]:.0f} to {found[-1]:.0f})  "
            f"{pages} in, {timings[side][0].left} left"
        )
    print(f"{job:6}  lmx / datatrove: {statistics.median(rates['lmx']) / statistics.median(rates['datatrove']):.2f}\n")


if __name__ == "__main__":
    main()
