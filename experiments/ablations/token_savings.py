"""G3, G4: distillation stands in for more tokens, and overfits later than labels on repeated text.

lmx run experiments/ablations/token_savings.py --workdir runs/ablations/G3

Students of 40k parameters and the teacher of G1. G3: labels on 1, 2 and 4 times N tokens against the teacher on N. G4: 16 thousand
tokens, over and over, at a constant rate; the spec has 1M tokens 8 times, which a student of this size does not overfit.

Hardware: a CPU, 2 cores.  Results: results/G3.json, G4.json and RESULTS.md.
"""

import jax
import numpy as np

from experiments.ablations import bed, teaching
from lmx.core.types import Params, PyTree
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, above, at_least, below, by_arm
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

DIM, TEACHER_DIM, BATCH = 32, 64, 8
STEPS, TIMES = 300, (1, 2, 4)
REPEATED, EPOCHS, MARK, REPEATED_RATE = 32, 32, 64, 4e-3


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiments({"G3": saves_tokens, "G4": overfits_later})


def saves_tokens(bench: Bench) -> Finding:
    """Tokens that labels need for the loss of distillation, interpolated in log tokens and extrapolated from the last two."""
    losses = bench.part("losses", lambda: {"held-out": _tokens(bench)})["held-out"]  # labels at TIMES, then the teacher
    arms = (*(f"labels, {times} N tokens" for times in TIMES), "teacher, N tokens")
    needed = [_needed(losses[:-1, seed], losses[-1, seed]) for seed in range(len(bench.seeds))]
    return Finding(
        outcomes={"held-out loss (nats)": by_arm(arms, losses)},
        checks=(
            above("tokens that labels need for the distilled loss / its own (4 = 4 or more)", needed, 1.5),
            below("held-out loss, teacher - labels at N tokens (nats)", losses[-1] - losses[0]),
        ),
        bed=_bed(f"N = {STEPS * BATCH * teaching.LENGTH:,} tokens, cosine to 0 in every arm"),
    )


def overfits_later(bench: Bench) -> Finding:
    """Held-out loss along many passes over the same tokens."""
    curves = bench.part("curves", lambda: {"held-out": _repeats(bench)})["held-out"]  # [labels and teacher, seeds, marks]
    labels, teacher = curves
    minimum = {"labels": labels.min(axis=-1), "teacher": teacher.min(axis=-1)}
    later = teacher.argmin(axis=-1) - labels.argmin(axis=-1)
    epochs = MARK / REPEATED
    return Finding(
        outcomes={
            "lowest held-out loss (nats)": {arm: tuple(map(float, values)) for arm, values in minimum.items()},
            "passes at the lowest held-out loss": by_arm(("labels", "teacher"), (curves.argmin(axis=-1) + 1) * epochs),
            "last held-out loss (nats)": by_arm(("labels", "teacher"), curves[:, :, -1]),
        },
        checks=(
            below("lowest held-out loss, teacher - labels (nats)", minimum["teacher"] - minimum["labels"]),
            above("held-out loss of labels, last - lowest (nats)", labels[:, -1] - minimum["labels"]),
            at_least("passes at the lowest loss, teacher - labels", later * epochs, 0.0),
        ),
        bed=_bed(f"{REPEATED * BATCH * teaching.LENGTH:,} tokens {EPOCHS} times, constant rate {REPEATED_RATE:g}"),
    )


def _needed(labels: np.ndarray, wanted: float) -> float:
    """Multiple of N at which the labels' loss, linear in log tokens between the marks, is `wanted`; at most the greatest mark."""
    order = np.argsort(labels)
    return float(np.exp(np.interp(wanted, labels[order], np.log(TIMES)[order])))


def _tokens(bench: Bench) -> np.ndarray:
    """[arms, seeds]. Arms whose tokens have run out stand still at a rate of 0."""
    steps = STEPS * max(TIMES)
    rates = np.zeros((len(TIMES) + 1, steps), np.float32)
    for arm, times in enumerate((*TIMES, 1)):
        rates[arm, : STEPS * times] = teaching.rates(STEPS * times, 1)[0]
    trained = _train(bench, bed.text(bench.seeds, steps, batch_size=BATCH, length=teaching.LENGTH), rates)
    return _heldout(trained.params)


def _repeats(bench: Bench) -> np.ndarray:
    """[labels and teacher, seeds, marks]"""
    once: LMBatch = bed.text(bench.seeds, REPEATED, batch_size=BATCH, length=teaching.LENGTH)
    batches = jax.tree.map(lambda x: np.tile(x, (1, EPOCHS, *(1,) * (x.ndim - 2))), once)
    steps = REPEATED * EPOCHS
    rates = np.full((2, steps), REPEATED_RATE, np.float32)
    rates[:, :20] *= np.linspace(0.05, 1, 20, dtype=np.float32)
    marks = list(range(MARK, steps + 1, MARK))
    trained = _train(bench, batches, rates, marks)
    return np.stack([_heldout(trained.snapshots[mark], count=6) for mark in marks], axis=-1)


def _train(bench: Bench, batches: PyTree, rates: np.ndarray, snapshots: list[int] | None = None) -> population.Trained:
    """The last arm learns from the teacher, the others from labels."""
    model, teacher = bed.model_of(teaching.config(DIM)), bed.model_of(teaching.config(TEACHER_DIM))
    return population.train(
        bed.spec(model, teaching.distillation(model, teacher), batches),
        population.initial(model, bench.seeds, arms=len(rates)),
        batches,
        rates=rates,
        knobs={"alpha": (np.arange(len(rates)) == len(rates) - 1).astype(np.float32)},
        frozen={"teacher": teaching.of_seeds(teaching.teacher(TEACHER_DIM), bench.seeds)},
        snapshots=snapshots or (),
        chunk=MARK,
    )


def _heldout(params: Params, count: int = 16) -> np.ndarray:
    """[arms, seeds]"""
    return bed.mean_losses(bed.model_of(teaching.config(DIM)), params, bed.heldout(count, length=teaching.LENGTH))


def _bed(tokens: str) -> str:
    sizes = [bed.model_of(teaching.config(dim)).num_params() // 1000 for dim in (DIM, TEACHER_DIM)]
    return f"Llama of {sizes[0]}k parameters, teacher of {sizes[1]}k, Python's documentation in bytes, {tokens}"
