"""M12: a mixture of experts upcycled from a dense model beats one from scratch; redrawing weights makes experts differ.

lmx run experiments/ablations/upcycled_experts.py --workdir runs/ablations/M12

Hardware: a CPU, 2 cores.  Results: results/M12.json and RESULTS.md.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations import bed, mixture
from lmx.core.types import Params
from lmx.eval.claims import Finding, above, below, by_arm
from lmx.model.activation import silu
from lmx.model.config import DecoderConfig, FFNConfig
from lmx.model.upcycling import Upcycling, upcycle
from lmx.objectives import RouterLoss
from lmx.objectives.lm import language_model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

BEFORE, AFTER, BATCH = 400, 200, 16
DENSE_SCHEDULE, SCHEDULE = WarmupCosine(peak=5e-3, warmup_steps=20, end_ratio=0.3), WarmupCosine(peak=4e-3, warmup_steps=20)
WAYS = {
    "copied": Upcycling(redrawn=0.0, shuffled=False),
    "shuffled": Upcycling(redrawn=0.0),
    "shuffled, half redrawn": Upcycling(redrawn=0.5),
}
ARMS = (*WAYS, "from scratch")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M12", measure)


def measure(bench: Bench) -> Finding:
    """A dense model made into three mixtures, and a fresh one, trained on the same tokens."""
    found = bench.part("mixtures", lambda: _mixtures(bench))
    losses, cosine, entropy = found["loss"], found["cosine"], found["entropy"]
    return Finding(
        outcomes={
            "held-out loss (nats)": by_arm(ARMS, losses),
            "held-out loss before the extra tokens (nats)": by_arm(ARMS, found["before"]),
            "mean cosine of two experts' outputs": by_arm(ARMS, cosine),
            "entropy of expert load (nats)": by_arm(ARMS, entropy),
        },
        checks=(
            below("held-out loss, upcycled (the worst of three) - from scratch (nats)", losses[:3].max(axis=0) - losses[3]),
            below("mean cosine of experts' outputs, half redrawn - copied", cosine[2] - cosine[0]),
            above("entropy of expert load, half redrawn - copied (nats)", entropy[2] - entropy[0]),
            below("held-out loss, half redrawn - copied (nats)", losses[2] - losses[0], judged=False),
        ),
        bed=(
            f"Qwen2 of width 32 for {BEFORE} steps of {BATCH * mixture.LENGTH}, then Qwen2-MoE, 2 of 8 experts, for {AFTER}; "
            "documentation in bytes"
        ),
    )


def _dense() -> DecoderConfig:
    """The mixture's dense model: the same with an FFN as wide as the active experts together."""
    target = mixture.config()
    ffn = FFNConfig(ffn_dim=2 * mixture.WIDTH, activation=silu)
    return dataclasses.replace(target, layer_pattern=tuple(dataclasses.replace(block, ffn=ffn) for block in target.layer_pattern))


def _mixtures(bench: Bench) -> dict[str, np.ndarray]:
    """[arms, seeds]"""
    rows = bed.text(bench.seeds, BEFORE + AFTER, batch_size=BATCH, length=mixture.LENGTH)
    first, second = (jax.tree.map(lambda x, part=part: x[:, part], rows) for part in (slice(BEFORE), slice(BEFORE, None)))
    dense = bed.model_of(_dense())
    source = bed.train(
        dense,
        population.initial(dense, bench.seeds),
        first,
        rates=population.rates([DENSE_SCHEDULE], BEFORE),
    ).params
    model, heldout = mixture.model(), bed.heldout(16, length=mixture.LENGTH)
    started = _started(source, bench)
    trained = population.train(
        bed.spec(model, language_model(model.apply, router=RouterLoss(balance=0.001)), second),
        started,
        second,
        rates=population.rates([SCHEDULE] * len(ARMS), AFTER),
    ).params
    return {
        "loss": bed.mean_losses(model, trained, heldout),
        "before": bed.mean_losses(model, started, heldout),
        "cosine": mixture.output_cosine(trained),
        "entropy": mixture.entropy(mixture.loads(model, trained, heldout)).mean(axis=-1),
    }


def _started(source: Params, bench: Bench) -> Params:
    """Leaves [arms, seeds, ...]: the dense model [1, seeds, ...] made into mixtures, and a fresh mixture."""
    keys = jnp.stack([jax.random.key(seed) for seed in bench.seeds])
    dense = jax.tree.map(lambda x: x[0], source)
    made = [
        jax.vmap(partial(upcycle, dense=_dense(), target=mixture.config(), settings=way))(dense, key=keys) for way in WAYS.values()
    ]
    fresh = jax.tree.map(lambda x: x[0], population.initial(mixture.model(), bench.seeds))
    return jax.tree.map(lambda *arms: np.stack([np.asarray(arm) for arm in arms]), *made, fresh)
