"""M3: annealing half a run on 30% of a candidate ranks data by quality.

lmx run experiments/ablations/anneal_probe.py --workdir runs/ablations/M3

A run on Python's documentation is stopped half-way. Its rate falls to zero over a quarter as many steps, on 70% documentation and
30% of a candidate: Python code, the same with 30% of its characters replaced at random, and characters drawn at random. The
candidates are ranked by the loss on held-out code.

Hardware: a CPU, 2 cores.  Results: results/M3.json and RESULTS.md.
"""

import dataclasses
import random
import string

import jax
import numpy as np

from experiments.ablations import bed
from lmx.data import files
from lmx.data.batches import LMBatch
from lmx.data.sources import Limited, PythonCorpus, Row, Rows, Source
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, below, by_arm
from lmx.optim import Constant, LinearFrom
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

HALF, TAIL, PEAK = 240, 60, 4e-3  # a whole run would have 480 steps
BATCH, LENGTH = 16, 64
CANDIDATES = {"clean": 0.0, "30% corrupted": 0.3, "random": 1.0}  # share of characters replaced
PROSE, CODE = PythonCorpus(kind="prose"), PythonCorpus(kind="code")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M3", measure)


def measure(bench: Bench) -> Finding:
    """One half run, three annealings."""
    losses = bench.part("losses", lambda: {"code": _losses(bench)})["code"]
    return Finding(
        outcomes={"loss on held-out code (nats)": by_arm(tuple(CANDIDATES), losses)},
        checks=(
            below("loss on held-out code, clean - 30% corrupted (nats)", losses[0] - losses[1]),
            below("loss on held-out code, 30% corrupted - random (nats)", losses[1] - losses[2]),
        ),
        bed=(
            f"Llama of width 32, documentation in bytes, {HALF} steps of {BATCH * LENGTH}, then {TAIL} a candidate: "
            f"{TAIL / (2 * HALF):.0%} of a whole run each"
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted:
    """A source with a share of the characters of each text replaced by printable ones drawn at random.

    Attributes:
      source: with a field "text".
      share: in [0, 1].
    """

    source: Source
    share: float

    def load(self, split: str) -> Rows:
        """The rows of the source's split."""
        rows = self.source.load(split)

        def corrupted(index: int) -> Row:
            draw = random.Random(index)
            text = (draw.choice(string.printable) if draw.random() < self.share else old for old in rows[index]["text"])
            return {"text": "".join(text)}

        return files.Mapped(range(len(rows)), corrupted)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


def _losses(bench: Bench) -> np.ndarray:
    """[candidates, seeds]"""
    shared = bed.text(bench.seeds, HALF, batch_size=BATCH, length=LENGTH)
    tails = [_mixed(bench, share) for share in CANDIDATES.values()]
    arms = [jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), shared, tail) for tail in tails]
    batches = jax.tree.map(lambda *rows: np.stack(rows), *arms)
    model = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH))
    constant = Constant(value=PEAK)
    rates = np.concatenate(
        [population.rates([constant], HALF), population.rates([LinearFrom(before=constant, before_steps=HALF)], TAIL)], axis=1
    )
    rates[:, :20] *= np.linspace(0.05, 1, 20)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(arms)),
        batches,
        rates=np.repeat(rates, len(arms), axis=0),
        own_batches=True,
    )
    code = PackedText(components=(Component(source=CODE),))
    return bed.mean_losses(model, trained.params, bed.heldout(16, length=LENGTH, data=code))


def _mixed(bench: Bench, share: float) -> LMBatch:
    candidate = Corrupted(source=Limited(source=CODE, max_bytes=1_000_000), share=share)
    parts = (Component(source=PROSE, weight=0.7), Component(source=candidate, weight=0.3))
    return bed.text(bench.seeds, TAIL, batch_size=BATCH, length=LENGTH, data=PackedText(components=parts))
