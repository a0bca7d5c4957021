"""A1: muP-simple carries the learning rate over widths.

lmx run experiments/ablations/mup_transfer.py --workdir runs/ablations/A1

Hardware: a CPU, 2 cores.  Results: results/A1.json and RESULTS.md.
"""

import numpy as np

from experiments.ablations import afm, bed
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, at_least, at_most, by_arm
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

BASE, WIDE = 32, 128
PEAKS = tuple(0.04 * 2.0**-k for k in range(6))  # falling, a factor of 2 a step
STEPS, ROWS, LENGTH = 150, 8, 32


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A1", measure)


def measure(bench: Bench) -> Finding:
    """The best rate of a grid at the base width, and at four times it with and without muP-simple."""
    batches = bed.text(bench.seeds, STEPS, batch_size=ROWS, length=LENGTH)
    found = {
        f"width {BASE}": bench.part("base", lambda: {"loss": _losses(bench, batches, BASE, mup=False)})["loss"],
        f"width {WIDE}, muP": bench.part("wide_mup", lambda: {"loss": _losses(bench, batches, WIDE, mup=True)})["loss"],
        f"width {WIDE}, plain": bench.part("wide_plain", lambda: {"loss": _losses(bench, batches, WIDE, mup=False)})["loss"],
    }
    base, with_mup, plain = (np.argmin(losses, axis=0) for losses in found.values())  # [S] numbers in the falling grid
    arms = [f"{name}, rate {peak:.3g}" for name in found for peak in PEAKS]
    return Finding(
        outcomes={
            "held-out loss (nats)": by_arm(arms, np.concatenate(list(found.values())).tolist()),
            "best rate": by_arm(list(found), [[PEAKS[k] for k in best] for best in (base, with_mup, plain)]),
        },
        checks=(
            at_most("steps that the best rate moves over 4 widths with muP-simple", abs(with_mup - base), 1.0),
            at_least("steps down that it moves without", plain - base, 1.0),
        ),
        bed=f"AFM of width {BASE} and {WIDE}, 2 layers, Python's documentation in bytes, {STEPS} steps of {ROWS * LENGTH} tokens",
    )


def _losses(bench: Bench, batches: LMBatch, width: int, *, mup: bool) -> np.ndarray:
    """[rates, seeds]; a loss that is not finite counts as infinite."""
    model = bed.model_of(afm.decoder(model_dim=width, max_length=LENGTH))
    optimizer = afm.rmsprop(base_width=BASE if mup else None)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(PEAKS)),
        batches,
        optimizer=optimizer,
        rates=afm.rates(PEAKS, STEPS),
    )
    losses = bed.mean_losses(model, trained.params, bed.heldout(16, batch_size=32, length=LENGTH))
    return np.where(np.isfinite(losses), losses, np.inf)
