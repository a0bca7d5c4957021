"""G10, G11: grouped-query attention matches multi-head attention; deeper is a little better than wider at equal parameters.

lmx run experiments/ablations/shapes.py --workdir runs/ablations/G10

What grouping saves in key and value projections goes into the FFN, so that sizes are equal to within one per cent.
The spec has 8 layers of 96 and 4 of 136; here it is 4 of 48 and 2 of 64.

Hardware: a CPU, 2 cores.  Results: results/G10.json, G11.json and RESULTS.md.
"""

import functools

import numpy as np

from configs.models import tiny
from experiments.ablations import bed
from lmx.eval.claims import Finding, at_most, by_arm, holds
from lmx.model import accounting
from lmx.model.config import DecoderConfig
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, BATCH, LENGTH, PEAK = 400, 16, 64, 4e-3


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiments({"G10": grouped, "G11": deeper})


def grouped(bench: Bench) -> Finding:
    """Four query heads with four KV heads and with two."""
    arms = {"4 KV heads": _llama(kv_heads=4, ffn_dim=155), "2 KV heads": _llama(kv_heads=2, ffn_dim=176)}
    losses = _losses(bench, arms)
    cache = [accounting.cache_elements(config, LENGTH) for config in arms.values()]
    return Finding(
        outcomes={"held-out loss (nats)": by_arm(tuple(arms), list(losses)), **_sizes(arms)},
        checks=(
            at_most("held-out loss, 2 KV heads - 4 KV heads (nats)", losses[1] - losses[0], 0.01),
            holds("the cache halves exactly", [2 * cache[1] == cache[0]]),
            holds("parameters equal to within 1%", [_equal(arms)]),
        ),
        bed=_bed("2 layers of 64"),
    )


def deeper(bench: Bench) -> Finding:
    """Four layers of 48 dimensions, and two of 64."""
    arms = {"deep": _llama(num_layers=4, model_dim=48, kv_heads=3, ffn_dim=132), "wide": _llama(kv_heads=4, ffn_dim=187)}
    losses = _losses(bench, arms)
    return Finding(
        outcomes={"held-out loss (nats)": by_arm(tuple(arms), list(losses)), **_sizes(arms)},
        checks=(
            at_most("held-out loss, deep - wide (nats)", losses[0] - losses[1], 0.005),
            holds("parameters equal to within 1%", [_equal(arms)]),
        ),
        bed=_bed("4 layers of 48 and 2 of 64"),
    )


def _llama(*, num_layers: int = 2, model_dim: int = 64, kv_heads: int, ffn_dim: int) -> DecoderConfig:
    return tiny.llama3(
        bed.BYTES.vocab_size,
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=model_dim // 16,
        kv_heads=kv_heads,
        ffn_dim=ffn_dim,
        max_length=LENGTH,
        lengthening=1,
    )


def _losses(bench: Bench, arms: dict[str, DecoderConfig]) -> np.ndarray:
    """[arms, seeds]"""
    parts = [bench.part(name.replace(" ", "-"), functools.partial(_trained, config, bench.seeds)) for name, config in arms.items()]
    return np.stack([part["held-out"] for part in parts])


def _trained(config: DecoderConfig, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    model = bed.model_of(config)
    batches = bed.text(seeds, STEPS, batch_size=BATCH, length=LENGTH)
    trained = bed.train(
        model,
        population.initial(model, seeds),
        batches,
        rates=population.rates([WarmupCosine(peak=PEAK, warmup_steps=20, end_ratio=0.0)], STEPS),
    )
    return {"held-out": bed.mean_losses(model, trained.params, bed.heldout(length=LENGTH))[0]}


def _sizes(arms: dict[str, DecoderConfig]) -> dict[str, dict[str, tuple[float, ...]]]:
    return {"parameters": {name: (float(bed.model_of(config).num_params()),) for name, config in arms.items()}}


def _equal(arms: dict[str, DecoderConfig]) -> bool:
    one, other = (bed.model_of(config).num_params() for config in arms.values())
    return abs(one - other) < 0.01 * one


def _bed(shape: str) -> str:
    return f"Llamas of {shape} dimensions, Python's documentation in bytes, {STEPS} steps of {BATCH * LENGTH:,}"
