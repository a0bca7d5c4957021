"""M1: annealing to zero lowers the loss, and averaging checkpoints helps a constant rate.

lmx run experiments/ablations/anneal_average.py --workdir runs/ablations/M1

The averaged checkpoints lie close together, in the last steps of the run: over a longer stretch the mean of a decaying
run is mostly of its earlier, worse part (measured: +0.011 nats with 12 steps between them, +0.004 with 5, +0.003 with 2).

Hardware: a CPU, 2 cores.  Results: results/M1.json and RESULTS.md.
"""

import numpy as np

from experiments.ablations import bed
from lmx import merging
from lmx.eval.claims import Finding, at_most, below, by_arm
from lmx.optim import Constant, WarmupLinear
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, TAIL, PEAK = 300, 60, 4e-3
APART = 1  # steps between the averaged checkpoints, and steps of a dispatch
ARMS = ("constant", "linear to 0", "linear + mean of last 5", "constant + mean of last 5")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M1", measure)


def measure(bench: Bench) -> Finding:
    """Constant rate up to 80% of the run, then the last steps at that rate or down to zero, each with its checkpoints' mean."""
    losses = bench.part("losses", lambda: {"held-out": _losses(bench)})["held-out"]
    constant, linear, linear_mean, constant_mean = losses
    return Finding(
        outcomes={"held-out loss (nats)": by_arm(ARMS, losses)},
        checks=(
            below("held-out loss, linear - constant (nats)", linear - constant),
            below("held-out loss, constant with mean - constant (nats)", constant_mean - constant),
            at_most("held-out loss, linear with mean - linear (nats)", linear_mean - linear, 0.002),
        ),
        bed=(
            f"Llama of 125k parameters, Python's documentation in bytes, {STEPS} steps of 1,024, of which the last {TAIL} differ; "
            f"the last 5 checkpoints"
        ),
    )


def _losses(bench: Bench) -> np.ndarray:
    """[arms, seeds]"""
    model, batches = bed.model_of(bed.llama()), bed.text(bench.seeds, STEPS, batch_size=8)
    rates = population.rates([Constant(value=PEAK), Constant(value=PEAK)], STEPS)
    rates[:, :20] *= np.linspace(0.05, 1, 20)
    rates[1, -TAIL:] = population.rates([WarmupLinear(peak=PEAK, warmup_steps=0)], TAIL)[0]
    marks = [STEPS - APART * k for k in (4, 3, 2, 1, 0)]
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=2),
        batches,
        rates=rates,
        snapshots=marks,
        chunk=APART,
    )
    averaged = merging.mean([trained.snapshots[mark] for mark in marks])
    heldout = bed.heldout()
    last, mean = (bed.mean_losses(model, params, heldout) for params in (trained.params, averaged))
    return np.stack([last[0], last[1], mean[1], mean[0]])
