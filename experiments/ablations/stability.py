"""G12, G13, A19: soft caps bound logits, norms behind blocks and QK-norm allow rates at least as high.

lmx run experiments/ablations/stability.py --workdir runs/ablations/G12

Small models with one part on and off, over a grid of constant learning rates. A run is stable when it ends below the entropy of the
text's single bytes, which a model that has lost everything but their frequencies has. Up to 16 times the plain rate no run was lost
with caps or norms on or off, and no logit passed 11, so the grid goes on to 256 times.

Hardware: a CPU, 2 cores.  Results: results/G12.json, G13.json, A19.json and RESULTS.md.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from experiments.ablations import afm, bed
from lmx.core.types import Array, Params, PyTree
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, at_least, at_most, by_arm, holds
from lmx.kernels import head
from lmx.model.config import AttentionConfig, DecoderConfig, TiedHead
from lmx.model.decoder import Model
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, BATCH, LENGTH, WARMUP = 100, 8, 64, 5
PLAIN = 4e-3
TIMES = (1, 8, 64, 256)
CAP = 30.0


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiments({"G12": caps, "G13": post_norms, "A19": qk_norm})


def caps(bench: Bench) -> Finding:
    """Gemma 2 with and without both soft caps."""
    found = _all(bench, {"with caps": gemma2(), "without": _without_caps(gemma2())})
    on, off = found["with caps"], found["without"]
    at_8 = TIMES.index(8)
    lost = [(~_stable(part)[at_8]).astype(int) for part in (on, off)]
    return Finding(
        outcomes={**_losses(found), "largest logit": _table(found, "logit")},
        checks=(
            holds("no logit above the cap at any rate", [bool(largest <= CAP) for largest in on["logit"].max(axis=0)]),
            at_most("runs lost at 8 times the rate, with caps - without", lost[0] - lost[1], 0.0),
            at_most(
                "held-out loss at the plain rate, with caps - without (nats)", on["loss"][0] - off["loss"][0], 0.01, judged=False
            ),
        ),
        bed=_bed(gemma2(), "Gemma 2"),
    )


def post_norms(bench: Bench) -> Finding:
    """Gemma 2 with norms before and after a block, and before only."""
    found = _all(bench, {"before and after": gemma2(), "before": _with_blocks(gemma2(), post_norms=False)})
    both, before = found["before and after"], found["before"]
    return Finding(
        outcomes=_losses(found),
        checks=(
            at_least("highest stable rate in doublings, before and after - before", _highest(both) - _highest(before), 0.0),
            at_most("held-out loss at the plain rate, before and after - before (nats)", both["loss"][0] - before["loss"][0], 0.01),
        ),
        bed=_bed(gemma2(), "Gemma 2"),
    )


def qk_norm(bench: Bench) -> Finding:
    """AFM with QK-norm after RoPE, before it, and without."""
    plain = afm.decoder(max_length=LENGTH)
    found = _all(
        bench,
        {
            "after RoPE": plain,
            "before RoPE": _with_attention(plain, qk_norm_before_rope=True),
            "without": _with_attention(plain, qk_norm=None),
        },
    )
    after, before, without = found.values()
    difference = abs((after["loss"][0] - before["loss"][0]).mean())
    return Finding(
        outcomes=_losses(found),
        checks=(
            at_least("highest stable rate in doublings, QK-norm - without", _highest(after) - _highest(without), 0.0),
            at_most(
                "mean difference of the places at the plain rate / standard deviation over seeds",
                [difference / after["loss"][0].std(ddof=1)],
                1.0,
            ),
        ),
        bed=_bed(plain, "AFM"),
    )


def gemma2() -> DecoderConfig:
    """Two layers of 32 dimensions."""
    return bed.gemma2(window=32, max_length=LENGTH)


def _without_caps(config: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(_with_attention(config, soft_cap=None), head=TiedHead())


def _with_blocks(config: DecoderConfig, **changes: object) -> DecoderConfig:
    pattern = tuple(dataclasses.replace(block, **changes) for block in config.layer_pattern)  # type: ignore[arg-type]
    return dataclasses.replace(config, layer_pattern=pattern)


def _with_attention(config: DecoderConfig, **changes: object) -> DecoderConfig:
    def changed(attention: AttentionConfig) -> AttentionConfig:
        return dataclasses.replace(attention, **changes)  # type: ignore[arg-type]

    pattern = tuple(dataclasses.replace(block, attention=changed(block.attention)) for block in config.layer_pattern)
    return dataclasses.replace(config, layer_pattern=pattern)


def _all(bench: Bench, configs: Mapping[str, DecoderConfig]) -> dict[str, dict[str, np.ndarray]]:
    """name -> "loss" and "logit" [rates, seeds], and "entropy" []."""
    parts = {
        name: bench.part(name.replace(" ", "-"), functools.partial(_run, config, bench.seeds)) for name, config in configs.items()
    }
    return {name: dict(part) for name, part in parts.items()}


@functools.cache
def _run(config: DecoderConfig, seeds: tuple[int, ...]) -> PyTree:
    model = bed.model_of(config)
    batches = bed.text(seeds, STEPS, batch_size=BATCH, length=LENGTH)
    rates = np.full((len(TIMES), STEPS), PLAIN, np.float32) * np.array(TIMES, np.float32)[:, None]
    rates[:, :WARMUP] *= np.linspace(1 / WARMUP, 1, WARMUP, dtype=np.float32)
    trained = bed.train(
        model,
        population.initial(model, seeds, arms=len(TIMES)),
        batches,
        rates=rates,
    )
    heldout = bed.heldout(8, length=LENGTH)
    largest = population.evaluate(functools.partial(_largest, model), trained.params, heldout).max(axis=-1)
    counts = np.bincount(np.asarray(heldout.labels)[np.asarray(heldout.loss_mask)])
    shares = counts[counts > 0] / counts.sum()
    return {"loss": bed.mean_losses(model, trained.params, heldout), "logit": largest, "entropy": -(shares * np.log(shares)).sum()}


def _largest(model: Model, params: Params, batch: LMBatch) -> Array:
    return jnp.max(jnp.abs(head.logits(model.apply(params, batch))))


def _stable(part: Mapping[str, np.ndarray]) -> np.ndarray:
    """[rates, seeds] bool."""
    return np.isfinite(part["loss"]) & (part["loss"] < part["entropy"])


def _highest(part: Mapping[str, np.ndarray]) -> np.ndarray:
    """[seeds]: log2 of the greatest stable rate over the plain one; -1 where none is."""
    doublings = np.log2(np.array(TIMES))[:, None]
    return np.where(_stable(part), doublings, -1.0).max(axis=0)


def _losses(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, tuple[float, ...]]]:
    return {"held-out loss (nats)": _table(found, "loss")}


def _table(found: Mapping[str, Mapping[str, np.ndarray]], what: str) -> dict[str, tuple[float, ...]]:
    rows = {f"{name}, rate x{times}": row for name, part in found.items() for times, row in zip(TIMES, part[what], strict=True)}
    return by_arm(tuple(rows), tuple(rows.values()))


def _bed(config: DecoderConfig, family: str) -> str:
    size = bed.model_of(config).num_params() // 1000
    tokens = f"{STEPS} steps of {BATCH * LENGTH} at rates from {PLAIN:g}"
    return f"{family} of {size}k parameters, Python's documentation in bytes, {tokens}"
