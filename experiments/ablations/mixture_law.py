"""M11: small runs predict the ranking of data mixtures at a larger size.

lmx run experiments/ablations/mixture_law.py --workdir runs/ablations/M11

Five mixtures of documentation, code and sums at three widths; for each a power law of the loss in the number of parameters, read
off at four times the largest of the three; then the five are trained at that size. The loss is 50% documentation's, 40% code's and
10% sums'.

Hardware: a CPU, 2 cores.  Results: results/M11.json and RESULTS.md.
"""

import statistics
from functools import partial

import jax
import numpy as np

from configs.data import domains
from configs.models import tiny
from experiments.ablations import bed
from lmx.eval.claims import Finding, at_least, below, by_arm
from lmx.eval.scaling_law import fit_power_law
from lmx.model.decoder import Model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, BATCH, LENGTH = 160, 8, 64
SCHEDULE = WarmupCosine(peak=5e-3, warmup_steps=16)
WIDTHS = (16, 32, 48, 96)  # the last one is predicted: four times the parameters of the one before it
MIXTURES: dict[str, dict[str, float]] = {
    "uniform": {"web": 1 / 3, "code": 1 / 3, "maths": 1 / 3},
    "as judged": {"web": 0.5, "code": 0.4, "maths": 0.1},
    "documentation": {"web": 0.85, "code": 0.1, "maths": 0.05},
    "code": {"web": 0.1, "code": 0.85, "maths": 0.05},
    "sums": {"web": 0.1, "code": 0.1, "maths": 0.8},
}
JUDGED = MIXTURES["as judged"]


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M11", measure)


def measure(bench: Bench) -> Finding:
    """Three sizes, a prediction, and what came."""
    losses = np.stack([bench.part(f"width {width}", partial(_losses, bench, width))["loss"] for width in WIDTHS])
    sizes = [float(width**2) for width in WIDTHS]  # layers grow with the square of the width
    predicted = np.stack(
        [[_predicted(sizes, losses[:-1, arm, seed]) for seed in range(losses.shape[2])] for arm in range(losses.shape[1])]
    )
    found = losses[-1]
    seeds = range(found.shape[1])
    chosen = np.argmin(predicted, axis=0)
    arms = tuple(MIXTURES)
    return Finding(
        outcomes={
            "loss predicted at width 96 (nats)": by_arm(arms, list(predicted)),
            **{f"loss at width {width} (nats)": by_arm(arms, losses[row]) for row, width in enumerate(WIDTHS)},
        },
        checks=(
            at_least(
                "Spearman's correlation of predicted and found losses",
                [_spearman(predicted[:, s], found[:, s]) for s in seeds],
                0.8,
            ),
            below("loss at width 96, chosen mixture - uniform (nats)", [found[chosen[s], s] - found[0, s] for s in seeds]),
        ),
        bed=f"Llamas of two layers and width 16 to 96, {STEPS} steps of {BATCH * LENGTH} bytes",
    )


def _predicted(sizes: list[float], losses: np.ndarray) -> float:
    law = fit_power_law(sizes[:-1], losses.tolist())
    return float(law(sizes[-1]))


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's correlation of the ranks."""
    ranks = [np.argsort(np.argsort(values)).tolist() for values in (left, right)]
    return statistics.correlation(*ranks)


def _model(width: int) -> Model:
    heads = width // 16
    config = tiny.llama3(
        bed.BYTES.vocab_size,
        model_dim=width,
        num_layers=2,
        q_heads=heads,
        kv_heads=heads,
        ffn_dim=width * 11 // 4,
        max_length=LENGTH,
        lengthening=1,
    )
    return bed.model_of(config)


def _losses(bench: Bench, width: int) -> dict[str, np.ndarray]:
    """[mixtures, seeds]"""
    sources = domains.stand_ins(long_characters=LENGTH)
    data = [domains.mixture(sources, weights) for weights in MIXTURES.values()]
    rows = [bed.text(bench.seeds, STEPS, batch_size=BATCH, length=LENGTH, data=each) for each in data]
    batches = jax.tree.map(lambda *arms: np.stack(arms), *rows)
    model = _model(width)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=len(data)),
        batches,
        rates=population.rates([SCHEDULE] * len(data), STEPS),
        own_batches=True,
    )
    heldout = {name: bed.heldout(8, length=LENGTH, data=domains.mixture(sources, {name: 1.0})) for name in JUDGED}
    losses = [weight * bed.mean_losses(model, trained.params, heldout[name]) for name, weight in JUDGED.items()]
    return {"loss": np.sum(losses, axis=0)}
