"""M9: filtered text beats more, unfiltered text at equal compute.

lmx run experiments/ablations/quality_quantity.py --workdir runs/ablations/M9

The sample crawl with all of Llama 3.1's steps, and with the filters of content left out (heuristics, token distribution, quality),
which leaves more text. As many tokens are read of either pool, over and over; the judge is good pages of another crawl. (The
specification's larger pool has 1.7 times the tokens; this one has what the filters let through, see the outcomes.)

Hardware: a CPU, 2 cores.  Results: results/M9.json and RESULTS.md.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from configs.data.sample_crawl import get_config as sample_crawl
from experiments.ablations import bed
from experiments.ablations.crawl_curation import GoodPages
from lmx.curation.functions.heuristics import Heuristics
from lmx.curation.pipelines.classify import Quality
from lmx.curation.pipelines.decontaminate import Decontaminate
from lmx.curation.pipelines.select import Downsample
from lmx.curation.pipelines.token_distribution import TokenDistribution
from lmx.curation.run import curate
from lmx.data.sources import ArrayRecords
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, at_most, by_arm
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

BLOCKS, STEPS, BATCH, LENGTH = 8, 400, 16, 64
SCHEDULE = WarmupCosine(peak=5e-3, warmup_steps=20)
LEFT_OUT: dict[str, tuple[type, ...]] = {
    "filtered": (Downsample, Decontaminate),
    "relaxed": (Downsample, Decontaminate, Heuristics, TokenDistribution, Quality),
}


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M9", measure)


def measure(bench: Bench) -> Finding:
    """Two pools, the same compute."""
    sizes = bench.part("pools", lambda: {name: np.asarray(_pool(bench, name)) for name in LEFT_OUT})
    losses = bench.part("losses", lambda: {"held-out": _losses(bench)})["held-out"]
    return Finding(
        outcomes={
            "loss on good pages of another crawl (nats)": by_arm(tuple(LEFT_OUT), losses),
            "pool (bytes)": {name: (float(size),) for name, size in sizes.items()},
        },
        checks=(at_most("loss on good pages of another crawl, filtered - relaxed (nats)", losses[0] - losses[1], 0.0),),
        bed=f"Llama of width 32, {BLOCKS * 100} made-up pages, {STEPS} steps of {BATCH * LENGTH} bytes of either pool",
    )


def _pool(bench: Bench, name: str) -> int:
    """Makes a pool and tells its bytes."""
    config = sample_crawl(blocks=BLOCKS)
    steps = tuple(step for step in config.steps if not isinstance(step, LEFT_OUT[name]))
    folder = bench.folder / name
    if folder.exists():
        folder.rmtree()  # of a run that was interrupted before this part was kept
    curate(dataclasses.replace(config, steps=steps, outputs=config.outputs[:1]), folder)
    return sum(len(text.encode()) for text in _packed(folder).texts())


def _packed(folder: Path) -> PackedText:
    return PackedText(components=(Component(source=ArrayRecords(path=str(folder / "documents" / "*.arrayrecord"))),))


def _losses(bench: Bench) -> np.ndarray:
    """[arms, seeds]"""
    pools = [_packed(bench.folder / name) for name in LEFT_OUT]
    rows = [bed.text(bench.seeds, STEPS, batch_size=BATCH, length=LENGTH, data=pool) for pool in pools]
    batches = jax.tree.map(lambda *arms: np.stack(arms), *rows)
    model = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH))
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(pools)),
        batches,
        rates=population.rates([SCHEDULE] * len(pools), STEPS),
        own_batches=True,
    )
    good = PackedText(components=(Component(source=GoodPages(blocks=2, seed=1)),))
    return bed.mean_losses(model, trained.params, bed.heldout(32, length=LENGTH, data=good))
