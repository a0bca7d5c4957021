"""M13: the auxiliary loss balances experts at little cost.

lmx run experiments/ablations/balance_loss.py --workdir runs/ablations/M13

Hardware: a CPU, 2 cores.  Results: results/M13.json and RESULTS.md.
"""

from collections.abc import Mapping

import numpy as np

from experiments.ablations import bed, mixture
from lmx.core.types import Array, Metrics, Params, Terms, Weighted
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, below, by_arm
from lmx.objectives import RouterLoss
from lmx.objectives.lm import language_model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, BATCH, SCHEDULE = 300, 16, WarmupCosine(peak=5e-3, warmup_steps=20)
COEFFICIENTS = (0.0, 1e-3, 1e-2)
ARMS = tuple(f"coefficient {value:g}" for value in COEFFICIENTS)
PLAIN = language_model(mixture.model().apply, router=RouterLoss(pooled=False))


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M13", measure)


def measure(bench: Bench) -> Finding:
    """Three coefficients, one program: the coefficient is a traced value."""
    found = bench.part("routing", lambda: _routing(bench))
    variation, losses = found["variation"], found["loss"]
    return Finding(
        outcomes={
            "variation of expert load (std / mean, mean over layers)": by_arm(ARMS, variation),
            "held-out loss (nats)": by_arm(ARMS, losses),
        },
        checks=(
            below("variation of expert load, 0.01 - 0.001", variation[2] - variation[1]),
            below("variation of expert load, 0.001 - 0", variation[1] - variation[0]),
            below("held-out loss, 0.01 - 0 (nats)", losses[2] - losses[0], 0.02),
            below("held-out loss, 0.001 - 0 (nats)", losses[1] - losses[0], 0.02),
        ),
        bed=f"Qwen2-MoE of width 32, 2 of 8 experts, documentation in bytes, {STEPS} steps of {BATCH * mixture.LENGTH}",
    )


def objective(params: Params, frozen: Mapping[str, Params], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
    """Next tokens, and the balance loss of each layer times the arm's coefficient."""
    terms, metrics = PLAIN(params, {}, batch, key)
    balance = metrics["router_balance"]
    scaled = Weighted(frozen["coefficient"] * balance.total, balance.weight)
    return {**terms, "router_balance": (1.0, scaled)}, metrics


def _routing(bench: Bench) -> dict[str, np.ndarray]:
    """[arms, seeds]"""
    model, batches = mixture.model(), bed.text(bench.seeds, STEPS, batch_size=BATCH, length=mixture.LENGTH)
    arms = len(COEFFICIENTS)
    trained = population.train(
        bed.spec(model, objective, batches),
        population.initial(model, bench.seeds, arms=arms),
        batches,
        rates=population.rates([SCHEDULE] * arms, STEPS),
        knobs={"coefficient": np.asarray(COEFFICIENTS, np.float32)},
    )
    heldout = bed.heldout(16, length=mixture.LENGTH)
    return {
        "variation": mixture.variation(mixture.loads(model, trained.params, heldout)).mean(axis=-1),
        "loss": bed.mean_losses(model, trained.params, heldout),
    }
