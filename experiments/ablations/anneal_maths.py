"""M2: upsampling maths in the annealing raises maths at little cost elsewhere.

lmx run experiments/ablations/anneal_maths.py --workdir runs/ablations/M2

The mixture is 90% Python documentation and 10% solved sums. In the last fiftieth of the run, while the rate falls linearly to
zero, one arm goes on with it and the other reads 30% sums and 70% of that mixture.

Hardware: a CPU, 2 cores.  Results: results/M2.json and RESULTS.md.
"""

import jax
import numpy as np

from configs.data import domains
from experiments.ablations import bed
from lmx.eval.claims import Finding, below, by_arm
from lmx.objectives.lm import language_model
from lmx.optim import WarmupStableDecay
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, TAIL, PEAK = 1200, 24, 4e-3
BATCH, LENGTH = 16, 64
ARMS = ("default mixture", "30% maths in the annealing")
DEFAULT = {"web": 90.0, "maths": 10.0}
UPSAMPLED = {"web": 0.7 * 90.0, "maths": 0.7 * 10.0 + 30.0}


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M2", measure)


def measure(bench: Bench) -> Finding:
    """Two annealings of the same run, judged on sums and on documentation."""
    losses = bench.part("losses", lambda: _losses(bench))
    maths, general = losses["maths"], losses["general"]
    return Finding(
        outcomes={
            "loss on held-out sums (nats)": by_arm(ARMS, maths),
            "loss on held-out documentation (nats)": by_arm(ARMS, general),
        },
        checks=(
            below("loss on sums, upsampled - default (nats)", maths[1] - maths[0], -0.02),
            below("loss on documentation, upsampled - default (nats)", general[1] - general[0], 0.01),
        ),
        bed=f"Llama of width 32, documentation and sums in bytes, {STEPS} steps of {BATCH * LENGTH}, the last {TAIL} annealing",
    )


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    """[arms, seeds] by domain"""
    sources = domains.stand_ins(long_characters=LENGTH)
    default, upsampled = (domains.mixture(sources, weights) for weights in (DEFAULT, UPSAMPLED))
    base = bed.text(bench.seeds, STEPS, batch_size=BATCH, length=LENGTH, data=default)
    other = bed.text(bench.seeds, TAIL, batch_size=BATCH, length=LENGTH, data=upsampled)
    annealed = jax.tree.map(lambda x, tail: np.concatenate([x[:, :-TAIL], tail], axis=1), base, other)
    batches = jax.tree.map(lambda *arms: np.stack(arms), base, annealed)
    model = bed.model_of(bed.llama(model_dim=32, max_length=LENGTH))
    schedule = WarmupStableDecay(peak=PEAK, warmup_steps=20, decay_steps=TAIL)
    trained = population.train(
        bed.spec(model, language_model(model.apply), batches),
        population.initial(model, bench.seeds, arms=2),
        batches,
        rates=population.rates([schedule, schedule], STEPS),
        own_batches=True,
    )
    maths = domains.mixture(sources, {"maths": 1.0})
    heldout = {
        "maths": bed.heldout(8, length=LENGTH, data=maths),
        "general": bed.heldout(32, length=LENGTH),
    }
    return {name: bed.mean_losses(model, trained.params, rows) for name, rows in heldout.items()}
