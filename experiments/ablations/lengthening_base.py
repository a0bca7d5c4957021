<<<<<<< HEAD
"""A13: the RoPE base of the critical-base formula is right for lengthening.

lmx run experiments/ablations/lengthening_base.py --workdir runs/ablations/A13

AFM's layers in rows of 32 with a base as large for that length as AFM's 500,000 is for 8,192; then rows of 128, as 32,768 is to
8,192, with the base kept, raised by the formula, or raised ten times further.

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
=======
"""A13: The RoPE base of the formula is right for lengthening.

lmx run experiments/ablations/lengthening_base.py --workdir runs/ablations/A13

Hardware: a CPU, 2 cores.  Results: results/A13.json and RESULTS.md.
"""

from functools import partial

import numpy as np

from experiments.ablations import afm, bed
from lmx.eval.claims import Finding, at_most, below, by_arm
from lmx.model import rope
from lmx.model.context import with_context
from lmx.objectives.lm import language_model
>>>>>>> ed1a813f2fe17d82f53f226edcd3405e77f2e393
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

<<<<<<< HEAD
SHORT, LONG, HEAD_DIM, TOKENS = 32, 128, 16, 1024
BASE = tiny.matched_theta(5e5, trained_length=8_192, full_head_dim=128, length=SHORT, head_dim=HEAD_DIM)
FORMULA = rope.critical_base(BASE, trained_length=SHORT, target_length=LONG)
BASES = {"base kept": BASE, "formula": FORMULA, "10 times the formula": 10 * FORMULA}
FIRST = (300, WarmupCosine(peak=5e-3, warmup_steps=20))
SECOND = (60, WarmupCosine(peak=1e-3, warmup_steps=5))
=======
CORE, SHORT, LONG = 32, 64, 256  # as 4,096, 8,192 and 32,768: the base fits the core's length, and the last stage is 4 times longer
TOKENS, STEPS, LONG_STEPS, PEAK = 1_024, 300, 80, 3e-3
TRAINED = with_context(afm.decoder(model_dim=48, max_length=CORE), max_length=SHORT)
THETA = TRAINED.layer_pattern[0].attention.rope.theta
FORMULA = rope.critical_base(THETA, trained_length=SHORT, target_length=LONG)
BASES = {"kept": THETA, "formula": FORMULA, "10 times the formula's": 10 * FORMULA}
>>>>>>> ed1a813f2fe17d82f53f226edcd3405e77f2e393


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A13", measure)


def measure(bench: Bench) -> Finding:
<<<<<<< HEAD
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
    documents = PackedText(components=(Component(source=Long(source=prose.source, min_bytes=LONG * 4)),))
    rows = bed.text(bench.seeds, SECOND[0], batch_size=TOKENS // LONG, length=LONG, data=documents)
    lengthened = [_trained(config, started, rows, *SECOND) for config in configs]
    short = bed.heldout(32, batch_size=32, length=SHORT)
    far = bed.heldout(48, batch_size=8, length=LONG, data=documents)
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
=======
    """One model, lengthened with three bases; losses beyond the old length and inside of it."""
    found = bench.part("losses", partial(_losses, bench.seeds))
    far, first, short, before = (found[name] for name in ("far", "far at first", "short", "before"))
    arms = tuple(BASES)
    return Finding(
        outcomes={
            f"held-out loss on positions {SHORT} to {LONG - 1} (nats)": by_arm(arms, far),
            "the same before any training at the new length (nats)": by_arm(arms, first),
            f"held-out loss on rows of {SHORT} (nats)": {"before": tuple(map(float, before)), **by_arm(arms, short)},
        },
        checks=(
            below("held-out loss beyond the old length, formula - kept (nats)", far[1] - far[0]),
            at_most("held-out loss on short rows, formula - before lengthening (nats)", short[1] - before, 0.01),
            at_most("held-out loss beyond the old length, formula - 10 times it (nats)", far[1] - far[2], 0.0, judged=False),
            below("the same before training, formula - kept (nats)", first[1] - first[0], judged=False),
        ),
        bed=(
            f"AFM of width 48, Python's documentation in bytes; {STEPS} steps of {TOKENS} tokens in rows of {SHORT}, then "
            f"{LONG_STEPS} in rows of {LONG}; bases {THETA:,.0f}, {FORMULA:,.0f} and ten times that"
        ),
    )


def _losses(seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each [bases, seeds], and "before" [seeds]."""
    model = bed.model_of(TRAINED)
    batches = bed.text(seeds, STEPS, batch_size=TOKENS // SHORT, length=SHORT)
    spec = bed.spec(model, language_model(model.apply), batches, optimizer=afm.rmsprop())
    params = population.train(spec, population.initial(model, seeds), batches, rates=afm.rates([afm.PEAK], STEPS)).params
    short, long = (bed.heldout(16, batch_size=2_048 // length, length=length) for length in (SHORT, LONG))
    beyond = np.asarray(long.positions) >= SHORT
    more = bed.text([seed + 100 for seed in seeds], LONG_STEPS, batch_size=TOKENS // LONG, length=LONG)
    found: dict[str, list[np.ndarray]] = {"far": [], "far at first": [], "short": []}
    for theta in BASES.values():
        longer = bed.model_of(with_context(TRAINED, rope_theta=theta, max_length=LONG))
        spec = bed.spec(longer, language_model(longer.apply), more, optimizer=afm.rmsprop())
        trained = population.train(spec, params, more, rates=afm.rates([PEAK], LONG_STEPS)).params
        for name, at in (("far at first", params), ("far", trained)):
            found[name].append(population.mean_over_tokens(bed.token_losses(longer, at, long), long, beyond)[0])
        found["short"].append(bed.mean_losses(longer, trained, short)[0])
    arrays = {name: np.stack(rows) for name, rows in found.items()}
    return {**arrays, "before": bed.mean_losses(model, params, short)[0]}
>>>>>>> ed1a813f2fe17d82f53f226edcd3405e77f2e393
