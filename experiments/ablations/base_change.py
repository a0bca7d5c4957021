"""M7: raising the RoPE base while lengthening lowers the loss at far positions.

lmx run experiments/ablations/base_change.py --workdir runs/ablations/M7

Rows of 32 with Qwen 2's first base, matched to that length, then rows of 256, half of them of long documents, with the same base or
with its second one, matched to 256 (the paper's 4,096 and 32,768 stand 1 to 8 as well).

Hardware: a CPU, 2 cores.  Results: results/M7.json and RESULTS.md.
"""

import numpy as np

from configs.data import python_corpus
from configs.models import tiny
from experiments.ablations import bed
from lmx.core.types import Params
from lmx.data.batches import LMBatch
from lmx.data.derived import Long
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, below, by_arm
from lmx.model.config import DecoderConfig
from lmx.model.context import with_context
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

SHORT, LONG, HEAD_DIM, TOKENS = 32, 256, 16, 1024
FIRST = (300, WarmupCosine(peak=5e-3, warmup_steps=20))
SECOND = (180, WarmupCosine(peak=2e-3, warmup_steps=10))
ARMS = ("base kept", "base raised")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M7", measure)


def measure(bench: Bench) -> Finding:
    """One short training, two long ones."""
    found = bench.part("losses", lambda: _losses(bench))
    far, near, short = found["far"], found["near"], found["short"]
    return Finding(
        outcomes={
            "loss at positions 128..255 (nats)": by_arm(ARMS, far),
            "loss at positions 32..127 (nats)": by_arm(ARMS, near),
            "loss at positions 128..255 before any step on long rows (nats)": by_arm(ARMS, found["before"]),
            "loss on rows of 32 (nats)": by_arm(("before lengthening", *ARMS), short),
        },
        checks=(
            below("loss at positions 128..255, raised - kept (nats)", far[1] - far[0]),
            below("loss on rows of 32, base raised - before lengthening (nats)", short[2] - short[0], 0.01),
        ),
        bed=f"Qwen2 of width 64, 2 layers, documentation in bytes, {FIRST[0]} steps of {TOKENS} in rows of 32, {SECOND[0]} of 256",
    )


def _config(base: float, trained: int, length: int) -> DecoderConfig:
    config = tiny.qwen2(bed.BYTES.vocab_size, num_layers=2, head_dim=HEAD_DIM, max_length=LONG)
    theta = tiny.matched_theta(base, trained_length=trained, full_head_dim=128, length=length, head_dim=HEAD_DIM)
    return with_context(config, rope_theta=theta)


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    first, second = _config(1e4, 4096, SHORT), _config(1e6, 32768, LONG)
    rows = bed.text(bench.seeds, FIRST[0], batch_size=TOKENS // SHORT, length=SHORT)
    started = _trained(first, _initial(first, bench), rows, *FIRST)
    prose = python_corpus.prose().components[0]
    long = Component(source=Long(source=prose.source, min_bytes=1000))
    documents = PackedText(components=(prose, long))
    rows = bed.text(bench.seeds, SECOND[0], batch_size=TOKENS // LONG, length=LONG, data=documents)
    lengthened = [(config, _trained(config, started, rows, *SECOND)) for config in (first, second)]
    short = bed.heldout(32, batch_size=32, length=SHORT)
    far = bed.heldout(32, batch_size=8, length=LONG, data=PackedText(components=(long,)))
    before = [_by_position(config, started, far) for config in (first, second)]
    after = [_by_position(config, params, far) for config, params in lengthened]
    return {
        "short": np.concatenate(
            [bed.mean_losses(bed.model_of(config), params, short) for config, params in ((first, started), *lengthened)]
        ),
        "near": np.stack([near for near, _ in after]),
        "far": np.stack([far for _, far in after]),
        "before": np.stack([far for _, far in before]),
    }


def _initial(config: DecoderConfig, bench: Bench) -> Params:
    return population.initial(bed.model_of(config), bench.seeds)


def _trained(config: DecoderConfig, params: Params, rows: LMBatch, steps: int, schedule: WarmupCosine) -> Params:
    return bed.train(bed.model_of(config), params, rows, rates=population.rates([schedule], steps)).params


def _by_position(config: DecoderConfig, params: Params, rows: LMBatch) -> tuple[np.ndarray, np.ndarray]:
    """[seeds] losses at positions 32..127 and 128..255"""
    values, positions = bed.token_losses(bed.model_of(config), params, rows), np.asarray(rows.positions)
    near = (positions >= SHORT) & (positions < LONG // 2)
    return tuple(population.mean_over_tokens(values, rows, where)[0] for where in (near, positions >= LONG // 2))
