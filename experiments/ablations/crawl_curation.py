"""M10: rules and deduplication find what is wrong in a crawl, and training gains by it.

lmx run experiments/ablations/crawl_curation.py --workdir runs/ablations/M10

The sample crawl, whose pages are labelled with their faults, goes through Llama 3.1's steps and AFM's decontamination. Then a model
reads as many tokens of the pages' text before and after, and is judged on good pages of another crawl.

Hardware: a CPU, 2 cores.  Results: results/M10.json and RESULTS.md.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from configs.data.sample_crawl import get_config as sample_crawl
from experiments.ablations import bed
from lmx.curation.config import Curation
from lmx.curation.functions.extraction import Extract, extract
from lmx.curation.run import curate
from lmx.curation.sample import crawl
from lmx.curation.sample.crawl import Truth
from lmx.data import files
from lmx.data.sources import ArrayRecords, Rows
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, at_least, below, by_arm
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

BLOCKS, STEPS, BATCH, LENGTH = 8, 400, 16, 64
SCHEDULE = WarmupCosine(peak=5e-3, warmup_steps=20)
# Which kinds of pages a step is there for.
PURPOSES: Mapping[str, tuple[str, ...]] = {
    "robots": ("disallowed", "opted_out", "unreachable"),
    "robots_recheck": ("later_opt_out",),
    "url_dedup": ("stale_version",),
    "exact_dedup": ("exact_duplicate",),
    "near_dedup": ("near_duplicate",),
    "language": ("foreign",),
    "heuristics": ("log", "dirty", "short", "symbols"),
    "token_distribution": ("garbage",),
    "quality": ("spam",),
    "decontamination": ("leak",),
}
COPIES = ("stale_version", "exact_duplicate", "near_duplicate")
ARMS = ("before the pipeline", "after the pipeline")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M10", measure)


def measure(bench: Bench) -> Finding:
    """What the pipeline finds, and what a model gains."""
    found = bench.part("curation", lambda: _curated(bench))
    losses = bench.part("losses", lambda: {"held-out": _losses(bench)})["held-out"]
    recall, precision = found["recall"], found["precision"]
    return Finding(
        outcomes={
            "loss on good pages of another crawl (nats)": by_arm(ARMS, losses),
            "recall by fault": {kind: (float(value),) for kind, value in sorted(recall.items())},
            "precision by step": {step: (float(value),) for step, value in sorted(precision.items())},
        },
        checks=(
            below("loss on good pages of another crawl, after - before (nats)", losses[1] - losses[0]),
            at_least("lowest recall of a fault", [min(recall.values())], 0.95),
            at_least("lowest precision of a step", [min(precision.values())], 0.9),
        ),
        bed=(
            f"{BLOCKS * crawl.BLOCK} labelled pages; then a Llama of width 32 on {STEPS} steps of {BATCH * LENGTH} bytes of the "
            "pages' text"
        ),
    )


def _curated(bench: Bench) -> dict[str, dict[str, np.ndarray]]:
    """Curates the crawl into two folders, the text alone and all steps, and compares the second with the labels."""
    config = sample_crawl(blocks=BLOCKS)
    plain = dataclasses.replace(config, steps=(Extract(),), outputs=config.outputs[:1])
    for name, each in (("before", plain), ("after", config)):
        folder = _folder(bench, name)
        if folder.exists():
            folder.rmtree()  # of a run that was interrupted before this part was kept
        curate(each, folder)
    drops = [row for path in sorted((_folder(bench, "after") / "dropped").iterdir()) for row in _lines(path)]
    return _scores(config, drops)


def _scores(config: Curation, drops: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Recall of each fault and precision of each step.

    A fault is found when its page is dropped by any step but the draw that thins out a topic, whose pages don't count. A copy is
    found when one of the pair is left at most. A step is wrong about a good page, and about a copy that isn't its own.
    """
    truths: dict[str, Truth] = config.source.truths()  # type: ignore[attr-defined]
    by_chance = {row["url"] for row in drops if row["step"] == "downsample"}
    found = {row["url"] for row in drops} - by_chance
    originals = {truth.group: url for url, truth in truths.items() if truth.kind == "original"}
    recall, precision = {}, {}
    for step, kinds in PURPOSES.items():
        for kind in kinds:
            pages = [(url, truth) for url, truth in truths.items() if truth.kind == kind and url not in by_chance]
            recall[kind] = _share([url in found or (kind in COPIES and originals[truth.group] in found) for url, truth in pages])
        right = [_is_right(truths, url, kinds) for url in (row["url"] for row in drops if row["step"] == step)]
        precision[step] = _share(right)
    return {"recall": recall, "precision": precision}


def _share(values: list[bool]) -> np.ndarray:
    return np.asarray(np.mean(values))


def _is_right(truths: Mapping[str, Truth], url: str, kinds: tuple[str, ...]) -> bool:
    truth = truths[url]
    if truth.kind == "original":  # its copy was kept in its place
        return any(other.group == truth.group and other.kind in kinds for other in truths.values())
    return truth.kind not in crawl.GOOD and (truth.kind not in COPIES or truth.kind in kinds)


def _losses(bench: Bench) -> np.ndarray:
    """[arms, seeds]"""
    texts = [_packed(ArrayRecords(path=str(_folder(bench, name) / "documents" / "*.arrayrecord"))) for name in ("before", "after")]
    rows = [bed.text(bench.seeds, STEPS, batch_size=BATCH, length=LENGTH, data=data) for data in texts]
    batches = jax.tree.map(lambda *arms: np.stack(arms), *rows)
    model = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH))
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=2),
        batches,
        rates=population.rates([SCHEDULE] * 2, STEPS),
        own_batches=True,
    )
    return bed.mean_losses(model, trained.params, bed.heldout(32, length=LENGTH, data=_packed(GoodPages(blocks=2, seed=1))))


def _packed(source: Any) -> PackedText:
    return PackedText(components=(Component(source=source),))


def _folder(bench: Bench, name: str) -> epath.Path:
    return bench.folder / f"crawl {name}"


def _lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text().splitlines())


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodPages:
    """The texts of a sample crawl's good pages, under the split "heldout".

    Attributes:
      blocks: of 100 pages.
      seed: of the crawl.
    """

    blocks: int
    seed: int

    def load(self, split: str) -> Rows:
        """The rows, whatever the split."""
        del split
        pages = [page for number in range(self.blocks) for page in crawl.block(number, self.seed)]
        return files.Mapped(
            [page for page in pages if page.truth.kind in crawl.GOOD], lambda page: {"text": extract(page.row["html"])[0]}
        )

    def fingerprint(self) -> str:
        """None is needed: the pages follow from the fields."""
        return ""
