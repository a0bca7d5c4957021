"""M2: upsampling maths in the annealing raises maths at little cost elsewhere.

lmx run experiments/ablations/anneal_maths.py --workdir runs/ablations/M2

The mixture is 97% Python documentation and 3% solved sums. In the last twentieth of the run, while the rate falls linearly from the
cosine's end to zero, one arm goes on with it and the other reads 30% sums and 70% of that mixture. The cosine ends at a twentieth
of its peak (Llama 3.1's at a hundredth): an annealing from the peak on is long enough to trade one domain for the other (measured
on documentation: +0.02 to +0.04 nats from the peak, +0.010 from a tenth of it).

Hardware: a CPU, 2 cores.  Results: results/M2.json and RESULTS.md.
"""

import jax
import numpy as np

from configs.data import domains
from experiments.ablations import bed
from lmx.eval.claims import Finding, below, by_arm
from lmx.optim import LinearFrom, WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, TAIL = 600, 30
COSINE = WarmupCosine(peak=5e-3, warmup_steps=20, end_ratio=0.05)
BATCH, LENGTH = 16, 64
ARMS = ("default mixture", "30% maths in the annealing")
DEFAULT = {"web": 97.0, "maths": 3.0}
UPSAMPLED = {"web": 0.7 * 97.0, "maths": 0.7 * 3.0 + 30.0}


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
        bed=f"Llama of width 64, documentation and sums in bytes, {STEPS} steps of {BATCH * LENGTH}, the last {TAIL} annealing",
    )


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    """[arms, seeds] by domain"""
    sources = domains.stand_ins(long_characters=LENGTH)
    default, upsampled = (domains.mixture(sources, weights) for weights in (DEFAULT, UPSAMPLED))
    base = bed.text(bench.seeds, STEPS, batch_size=BATCH, length=LENGTH, data=default)
    other = bed.text(bench.seeds, TAIL, batch_size=BATCH, length=LENGTH, data=upsampled)
    annealed = jax.tree.map(lambda x, tail: np.concatenate([x[:, :-TAIL], tail], axis=1), base, other)
    batches = jax.tree.map(lambda *arms: np.stack(arms), base, annealed)
    model = bed.model_of(bed.llama(model_dim=64, max_length=LENGTH))
    annealing = LinearFrom(before=COSINE, before_steps=STEPS - TAIL)
    rates = np.concatenate([population.rates([COSINE], STEPS - TAIL), population.rates([annealing], TAIL)], axis=1)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=2),
        batches,
        rates=np.repeat(rates, 2, axis=0),
        own_batches=True,
    )
    maths = domains.mixture(sources, {"maths": 1.0})
    heldout = {
        "maths": bed.heldout(8, length=LENGTH, data=maths),
        "general": bed.heldout(32, length=LENGTH),
    }
    return {name: bed.mean_losses(model, trained.params, rows) for name, rows in heldout.items()}
