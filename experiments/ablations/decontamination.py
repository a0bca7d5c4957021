"""A15: decontamination finds benchmark items and leaves the rest.

lmx run experiments/ablations/decontamination.py --workdir runs/ablations/A15

A whole curation on Beam's local runner, once with AFM's threshold for common usage and once without. The corpus is made of
articles. Some hold an item of an invented benchmark, or a piece of one of 13, 8, 5 or 4 words; others hold three words of one
between two words that no item has (a near miss), or a phrase that everybody uses and that one item happens to have. AFM's threshold
of 1,000 documents is scaled to the corpus: it lies just below the number of documents with the phrase.

Hardware: a CPU, 2 cores.  Results: results/A15.json and RESULTS.md.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
from etils import epath

from experiments.ablations import bed
from lmx.curation.config import Curation
from lmx.curation.functions import decontamination
from lmx.curation.pipelines.decontaminate import BenchmarkFiles, Decontaminate
from lmx.curation.pipelines.source import JsonPages
from lmx.curation.run import curate
from lmx.curation.sample import prose
from lmx.eval.claims import Finding, at_least, by_arm, holds
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench

PIECES = (13, 8, 5, 4)
EACH, NEAR_MISSES, COMMON, PLAIN = 30, 60, 120, 200
ITEMS = 200
PHRASE = "at the end of the day"
KINDS = {
    "verbatim": EACH,
    **{f"{n} words": EACH for n in PIECES},
    "near miss": NEAR_MISSES,
    "common phrase": COMMON,
    "plain": PLAIN,
}
CLEAN = ("near miss", "common phrase", "plain")
ARMS = ("threshold", "no threshold")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A15", measure)


def measure(bench: Bench) -> Finding:
    """Share of each kind of document that is dropped, with the threshold and without."""
    parts = [bench.part(f"seed{seed}", partial(_dropped, bench.folder, seed)) for seed in bench.seeds]
    with_threshold, without = ([{kind: int(part[arm][kind]) for kind in KINDS} for part in parts] for arm in ("with", "without"))
    clean = [[sum(counts[kind] for kind in CLEAN) for counts in arm] for arm in (with_threshold, without)]
    leaks = [sum(counts.values()) - sum(counts[kind] for kind in CLEAN) for counts in with_threshold]
    total = sum(number for kind, number in KINDS.items() if kind not in CLEAN)
    recall = [found / total for found in leaks]
    return Finding(
        outcomes={
            f"{kind}: dropped of {number}": by_arm(ARMS, [[counts[kind] for counts in arm] for arm in (with_threshold, without)])
            for kind, number in KINDS.items()
        },
        checks=(
            at_least("recall on items and pieces of 4 words or more", recall, 1.0),
            holds("no near miss is dropped", [counts["near miss"] == 0 for counts in with_threshold]),
            holds("no common phrase is dropped", [counts["common phrase"] == 0 for counts in with_threshold]),
            at_least(
                "clean documents dropped without the threshold, for each one with it",
                [without_it / max(with_it, 1) for with_it, without_it in zip(*clean, strict=True)],
                10,
            ),
        ),
        bed=f"{sum(KINDS.values())} generated articles, {ITEMS} benchmark items, the whole pipeline on Beam",
    )


def _dropped(folder: epath.Path, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Documents of each kind that are dropped."""
    place = folder / f"corpus{seed}"
    if place.exists():
        place.rmtree()
    place.mkdir(parents=True)
    items = [*prose.benchmark_items(seed, ITEMS), f"{PHRASE} the walrus keeps no lantern"]
    _write(place / "benchmark.jsonl", [{"benchmark": "riddles", "text": item} for item in items])
    _write(place / "pages.jsonl", [{"url": url, "text": text} for url, text in _pages(items, seed)])
    found = {name: _curated(place, name, common) for name, common in (("with", COMMON - 1), ("without", None))}
    place.rmtree()
    return found


def _pages(items: list[str], seed: int) -> Iterator[tuple[str, str]]:
    draw = random.Random(seed)
    for kind, count in KINDS.items():
        for number in range(count):
            article = prose.article(f"{seed} {kind} {number}", "travel")
            piece = _piece(kind, decontamination.words(draw.choice(items[:-1])), draw)
            yield (
                f"https://example.org/{kind.replace(' ', '-')}/{number}",
                "\n".join(prose.inserted(article, piece, f"{number}") if piece else article),
            )


def _piece(kind: str, item: list[str], draw: random.Random) -> str:
    """What is put into a document of this kind."""
    if kind in ("plain", "common phrase"):
        return f"So {PHRASE} nothing" if kind == "common phrase" else ""
    if kind == "verbatim":
        return " ".join(item)
    size = 3 if kind == "near miss" else min(int(kind.split()[0]), len(item))
    start = draw.randrange(len(item) - size + 1)
    piece = " ".join(item[start : start + size])
    return f"Quoth {piece} forsooth" if kind == "near miss" else piece


def _curated(place: epath.Path, name: str, common: int | None) -> dict[str, np.ndarray]:
    output = place / name
    step = Decontaminate(items=BenchmarkFiles(path=str(place / "benchmark.jsonl")), common_documents=common)
    curate(Curation(name=name, source=JsonPages(path=str(place / "pages.jsonl")), steps=(step,)), str(output))
    rows = [json.loads(line) for file in output.glob("dropped/*.jsonl") for line in file.read_text().splitlines()]
    kinds = Counter(row["url"].split("/")[3].replace("-", " ") for row in rows)
    return {kind: np.array(kinds[kind]) for kind in KINDS}


def _write(path: epath.Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
