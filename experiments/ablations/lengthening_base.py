"""A13: the RoPE base of the critical-base formula is right for lengthening.

lmx run experiments/ablations/lengthening_base.py --workdir runs/ablations/A13

AFM's layers in rows of 32 with a base as large for that length as AFM's 500,000 is for 8,192; then rows of 128, as 32,768 is to
8,192, with the base kept, raised by the formula, or raised ten times further. Half of the long rows are of long documents alone and
half of any: on long documents alone the short loss rises by 0.03 with the base kept, too.

Hardware: a CPU, 2 cores.  Results: results/A13.json and RESULTS.md.
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
from lmx.model import rope
from lmx.model.config import DecoderConfig
from lmx.model.context import with_context
from lmx.objectives.lm import language_model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

SHORT, LONG, HEAD_DIM, TOKENS = 32, 128, 16, 1024
BASE = tiny.matched_theta(5e5, trained_length=8_192, full_head_dim=128, length=SHORT, head_dim=HEAD_DIM)
FORMULA = rope.critical_base(BASE, trained_length=SHORT, target_length=LONG)
BASES = {"base kept": BASE, "formula": FORMULA, "10 times the formula": 10 * FORMULA}
FIRST = (300, WarmupCosine(peak=5e-3, warmup_steps=20))
SECOND = (150, WarmupCosine(peak=2e-3, warmup_steps=10))


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A13", measure)


def measure(bench: Bench) -> Finding:
    """One short training, and a long one with each base."""
    found = bench.part("losses", lambda: _losses(bench))
    far, short = found["far"], found["short"]
    return Finding(
        outcomes={
            "base": by_arm(tuple(BASES), [(base,) * len(bench.seeds) for base in BASES.values()]),
            "loss at positions 32..127 (nats)": by_arm(tuple(BASES), far),
            "the same before any long row (nats)": by_arm(tuple(BASES), found["before"]),
            "loss on rows of 32, rise by the lengthening (nats)": by_arm(tuple(BASES), short),
        },
        checks=(
            below("loss at positions 32..127, formula - kept (nats)", far[1] - far[0]),
            below("loss on rows of 32, formula - before lengthening (nats)", short[1], 0.01),
            below("loss at positions 32..127, 10 times the formula - formula (nats)", far[2] - far[1], judged=False),
        ),
        bed=f"two AFM layers of width 64, documentation, {FIRST[0]} steps of {TOKENS} bytes in rows of 32, {SECOND[0]} of 128",
    )


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    start = tiny.afm(bed.BYTES.vocab_size, num_layers=2, q_heads=4, head_dim=HEAD_DIM, max_length=LONG)
    configs = [with_context(start, rope_theta=base) for base in BASES.values()]
    rows = bed.text(bench.seeds, FIRST[0], batch_size=TOKENS // SHORT, length=SHORT)
    started = _trained(configs[0], population.initial(bed.model_of(configs[0]), bench.seeds), rows, *FIRST)
    prose = python_corpus.prose().components[0]
    long = Component(source=Long(source=prose.source, min_bytes=LONG * 4))
    rows = bed.text(bench.seeds, SECOND[0], batch_size=TOKENS // LONG, length=LONG, data=PackedText(components=(prose, long)))
    lengthened = [_trained(config, started, rows, *SECOND) for config in configs]
    short = bed.heldout(32, batch_size=32, length=SHORT)
    far = bed.heldout(48, batch_size=8, length=LONG, data=PackedText(components=(long,)))
    before = bed.mean_losses(bed.model_of(configs[0]), started, short)[0]
    after = [bed.mean_losses(bed.model_of(config), params, short)[0] for config, params in zip(configs, lengthened, strict=True)]
    return {
        "short": np.stack(after) - before,
        "far": np.stack([_far(config, params, far) for config, params in zip(configs, lengthened, strict=True)]),
        "before": np.stack([_far(config, started, far) for config in configs]),
    }


def _trained(config: DecoderConfig, params: Params, rows: LMBatch, steps: int, schedule: WarmupCosine) -> Params:
    model = bed.model_of(config)
    spec = bed.spec(model, language_model(model.apply), rows)
    return population.train(spec, params, rows, rates=population.rates([schedule], steps)).params


def _far(config: DecoderConfig, params: Params, rows: LMBatch) -> np.ndarray:
    """[seeds] loss at positions 32..127"""
    values = bed.token_losses(bed.model_of(config), params, rows)
    return population.mean_over_tokens(values, rows, np.asarray(rows.positions) >= SHORT)[0]
