"""A2: AFM's recipe is near parity with a typical AdamW recipe.

lmx run experiments/ablations/recipe_parity.py --workdir runs/ablations/A2

Hardware: a CPU, 2 cores.  Results: results/A2.json and RESULTS.md.
"""

import numpy as np

from experiments.ablations import afm, bed
from lmx.eval.claims import Finding, at_most, by_arm
from lmx.optim import AdamW, Constant, Optimizer
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

BASE, WIDE, LENGTH, TOKENS = 32, 128, 32, 51_200
AFM_PEAKS, ADAMW_PEAKS = (0.04, 0.02, 0.01, 0.005), (0.02, 0.01, 0.005, 0.0025)
AFM_ROWS, ADAMW_ROWS = 8, 2  # the typical recipe's batch is a quarter
TYPICAL = AdamW(schedule=Constant(value=1.0), b1=0.9, b2=0.95, weight_decay=1e-4)


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A2", measure)


def measure(bench: Bench) -> Finding:
    """Both recipes over rates at the base width; at 4 times it AFM's at the rate found there, and AdamW's swept once more."""
    recipe, recipe_wide = afm.rmsprop(), afm.rmsprop(base_width=BASE)
    ours = bench.part("afm_base", lambda: {"loss": _losses(bench, BASE, recipe, AFM_ROWS, AFM_PEAKS, afm.END_RATIO)})["loss"]
    typical = bench.part("adamw_base", lambda: {"loss": _losses(bench, BASE, TYPICAL, ADAMW_ROWS, ADAMW_PEAKS, 1e-4)})["loss"]
    equal = bench.part("adamw_equal", lambda: {"loss": _losses(bench, BASE, TYPICAL, AFM_ROWS, ADAMW_PEAKS, 1e-4)})["loss"]
    best = int(ours.mean(axis=1).argmin())
    carried = AFM_PEAKS[best : best + 1]
    wide = bench.part("afm_wide", lambda: {"loss": _losses(bench, WIDE, recipe_wide, AFM_ROWS, carried, afm.END_RATIO)})["loss"]
    rates = ADAMW_PEAKS[1:]  # a wider model wants no higher rate
    swept = bench.part("adamw_wide", lambda: {"loss": _losses(bench, WIDE, TYPICAL, ADAMW_ROWS, rates, 1e-4)})["loss"]
    narrow_gap = ours[best] - typical[typical.mean(axis=1).argmin()]
    equal_gap = ours[best] - equal[equal.mean(axis=1).argmin()]
    wide_gap = wide[0] - swept[swept.mean(axis=1).argmin()]
    outcome = {f"AFM, width {BASE}, rate {rate:g}": row for rate, row in zip(AFM_PEAKS, ours, strict=True)}
    outcome |= {f"AdamW, width {BASE}, rate {rate:g}": row for rate, row in zip(ADAMW_PEAKS, typical, strict=True)}
    outcome |= {f"AdamW, width {BASE}, AFM's batch, rate {rate:g}": row for rate, row in zip(ADAMW_PEAKS, equal, strict=True)}
    outcome |= {f"AFM, width {WIDE}, carried rate {carried[0]:g}": wide[0]}
    outcome |= {f"AdamW, width {WIDE}, rate {rate:g}": row for rate, row in zip(rates, swept, strict=True)}
    return Finding(
        outcomes={"held-out loss (nats)": by_arm(list(outcome), list(outcome.values()))},
        checks=(
            at_most(f"held-out loss at width {BASE}, AFM - AdamW (nats)", narrow_gap, 0.01),
            at_most(f"held-out loss at width {WIDE}, AFM at the carried rate - AdamW at its best (nats)", wide_gap, 0.01),
            at_most(f"held-out loss at width {BASE}, AFM - AdamW at AFM's batch (nats)", equal_gap, 0.01, judged=False),
        ),
        bed=(
            f"AFM of width {BASE} and {WIDE}, 2 layers, Python's documentation in bytes, {TOKENS:,} tokens; batches of "
            f"{AFM_ROWS * LENGTH} tokens with AFM's recipe and a quarter with AdamW's"
        ),
    )


def _losses(bench: Bench, width: int, optimizer: Optimizer, rows: int, peaks: tuple[float, ...], end_ratio: float) -> np.ndarray:
    """[rates, seeds]"""
    steps = TOKENS // (rows * LENGTH)
    model = bed.model_of(afm.decoder(model_dim=width, max_length=LENGTH))
    batches = bed.text(bench.seeds, steps, batch_size=rows, length=LENGTH)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(peaks)),
        batches,
        optimizer=optimizer,
        rates=afm.rates(peaks, steps, end_ratio=end_ratio),
    )
    losses = bed.mean_losses(model, trained.params, bed.heldout(16, batch_size=32, length=LENGTH))
    return np.where(np.isfinite(losses), losses, np.inf)
