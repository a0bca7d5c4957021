"""A13: The RoPE base of the formula is right for lengthening.

lmx run experiments/ablations/lengthening_formula.py --workdir runs/ablations/A13

Hardware: a CPU, 2 cores.  Results: results/A13.json and RESULTS.md.
"""

from functools import partial

import numpy as np

from experiments.ablations import afm, bed
from lmx.eval.claims import Finding, at_most, below, by_arm
from lmx.model import rope
from lmx.model.context import with_context
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

CORE, SHORT, LONG = 32, 64, 256  # as 4,096, 8,192 and 32,768: the base fits the core's length, and the last stage is 4 times longer
TOKENS, STEPS, LONG_STEPS, PEAK = 1_024, 300, 80, 3e-3
TRAINED = with_context(afm.decoder(model_dim=48, max_length=CORE), max_length=SHORT)
THETA = TRAINED.layer_pattern[0].attention.rope.theta
FORMULA = rope.critical_base(THETA, trained_length=SHORT, target_length=LONG)
BASES = {"kept": THETA, "formula": FORMULA, "10 times the formula's": 10 * FORMULA}


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A13", measure)


def measure(bench: Bench) -> Finding:
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
    train = partial(bed.train, optimizer=afm.rmsprop())
    params = train(model, population.initial(model, seeds), batches, rates=afm.rates([afm.PEAK], STEPS)).params
    short, long = (bed.heldout(16, batch_size=2_048 // length, length=length) for length in (SHORT, LONG))
    beyond = np.asarray(long.positions) >= SHORT
    more = bed.text([seed + 100 for seed in seeds], LONG_STEPS, batch_size=TOKENS // LONG, length=LONG)
    found: dict[str, list[np.ndarray]] = {"far": [], "far at first": [], "short": []}
    for theta in BASES.values():
        longer = bed.model_of(with_context(TRAINED, rope_theta=theta, max_length=LONG))
        trained = train(longer, params, more, rates=afm.rates([PEAK], LONG_STEPS)).params
        for name, at in (("far at first", params), ("far", trained)):
            found[name].append(population.mean_over_tokens(bed.token_losses(longer, at, long), long, beyond)[0])
        found["short"].append(bed.mean_losses(longer, trained, short)[0])
    arrays = {name: np.stack(rows) for name, rows in found.items()}
    return {**arrays, "before": bed.mean_losses(model, params, short)[0]}
