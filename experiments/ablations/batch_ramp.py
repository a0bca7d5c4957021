"""M4: small batches early, larger ones later, save compute at no cost.

lmx run experiments/ablations/batch_ramp.py --workdir runs/ablations/M4

A quarter of the batch for 2% of the tokens and half of it up to 18%, against the whole batch all along: the same tokens in the same
order at the same learning rate, which is a function of the tokens seen. (Llama 3.1 405B doubles at 0.0016% and 18.4%.) Both arms
run in one program, small batches being rows of a whole one whose rest is masked.

Hardware: a CPU, 2 cores.  Results: results/M4.json and RESULTS.md.
"""

import jax
import numpy as np

from configs.data import python_corpus
from experiments.ablations import bed
from lmx.data.batches import LMBatch
from lmx.data.ramp import Phase, Ramp
from lmx.eval.claims import Finding, at_most, below, by_arm
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

ROWS, LENGTH = 32, 64
WHOLE = ROWS * LENGTH  # tokens
TOKENS = 200 * WHOLE
SCHEDULE = WarmupCosine(peak=5e-3, warmup_steps=8)  # in whole batches
CONSTANT = Ramp((Phase(from_tokens=0, batch_size=ROWS, length=LENGTH),))
RAMP = Ramp(
    (
        Phase(from_tokens=0, batch_size=ROWS // 4, length=LENGTH),
        Phase(from_tokens=TOKENS * 2 // 100, batch_size=ROWS // 2, length=LENGTH),
        Phase(from_tokens=TOKENS * 18 // 100, batch_size=ROWS, length=LENGTH),
    )
)
ARMS = {"constant": CONSTANT, "ramp": RAMP}
SPIKE = 0.5  # nats above the mean of the 16 steps before


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M4", measure)


def measure(bench: Bench) -> Finding:
    """A ramp and a constant batch over the same tokens."""
    found = bench.part("losses", lambda: _losses(bench))
    early, final, spikes = found["early"], found["final"], found["spikes"]
    return Finding(
        outcomes={
            "held-out loss at 10% of the tokens (nats)": by_arm(tuple(ARMS), early),
            "held-out loss at the end (nats)": by_arm(tuple(ARMS), final),
            f"steps whose loss is {SPIKE} nats above the 16 before": by_arm(tuple(ARMS), spikes),
        },
        checks=(
            below("held-out loss at 10% of the tokens, ramp - constant (nats)", early[1] - early[0]),
            at_most("held-out loss at the end, ramp - constant (nats)", final[1] - final[0], 0.01),
            at_most("spikes, ramp - constant", spikes[1] - spikes[0], 0.0),
        ),
        bed=f"Llama of width 32, documentation in bytes, {TOKENS} tokens in batches of {WHOLE}; ramp from {WHOLE // 4}",
    )


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    """[arms, seeds]"""
    ends = [ramp.steps(TOKENS) for ramp in ARMS.values()]
    tenths = [ramp.steps(TOKENS // 10) for ramp in ARMS.values()]
    steps = max(ends)
    batches = jax.tree.map(lambda *arms: np.stack(arms), *[_batches(ramp, bench.seeds, steps) for ramp in ARMS.values()])
    model = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH))
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(ARMS)),
        batches,
        rates=np.stack([_rates(ramp, steps) for ramp in ARMS.values()]),
        own_batches=True,
        snapshots=sorted({*ends, *tenths}),
        chunk=4,
    )
    heldout = bed.heldout(16, batch_size=32, length=LENGTH)
    at = {step: bed.mean_losses(model, params, heldout) for step, params in trained.snapshots.items()}
    return {
        "early": np.stack([at[step][arm] for arm, step in enumerate(tenths)]),
        "final": np.stack([at[step][arm] for arm, step in enumerate(ends)]),
        "spikes": np.stack([_spikes(trained.metrics["nll"][arm, :, :step]) for arm, step in enumerate(ends)]),
    }


def _batches(ramp: Ramp, seeds: tuple[int, ...], steps: int) -> LMBatch:
    """Leaves [S, N, B, T], small batches filled up with masked rows; after the ramp's tokens, more of the same."""

    def filled(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, ROWS - x.shape[0]), (0, 0)))

    rows = []
    for seed in seeds:
        loader = python_corpus.prose().loader(bed.BYTES, batch_size=ROWS, length=LENGTH, seed=seed, ramp=ramp)
        rows.append(population.stacked((jax.tree.map(filled, batch) for batch in loader), steps))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _rates(ramp: Ramp, steps: int) -> np.ndarray:
    """[N] float32: the schedule at the tokens seen; 0 once they are used up."""
    seen = np.array([ramp.tokens(step) for step in range(steps)])
    rate = jax.vmap(SCHEDULE.build(TOKENS // WHOLE))(np.minimum(seen / WHOLE, TOKENS / WHOLE))
    return np.where(seen < TOKENS, np.asarray(rate), 0.0).astype(np.float32)


def _spikes(losses: np.ndarray) -> np.ndarray:
    """[S] from the training losses [S, N]."""
    before = np.lib.stride_tricks.sliding_window_view(losses, 16, axis=1)[:, :-1].mean(axis=-1)
    return (losses[:, 16:] > before + SPIKE).sum(axis=1)
