"""A10: the continued stage is better without distillation.

lmx run experiments/ablations/continued_labels.py --workdir runs/ablations/A10

A student is distilled (0.9 on the teacher's top-1) on a core mixture with little maths, and goes on with half maths, where its
teacher has not been: with labels, with the top-1 mix, or with the teacher's whole distribution. A last arm has a teacher that went
on too, and tells a stale teacher from the objective. The maths is the largest of three digits; exact match is that of the answer.

Hardware: a CPU, 2 cores.  Results: results/A10.json and RESULTS.md.
"""

from functools import partial

import jax
import numpy as np

from configs.data import python_corpus
from experiments.ablations import bed
from lmx.core.types import Array, Objective, Params
from lmx.data.batches import LMBatch
from lmx.data.derived import SolvedTasks
from lmx.data.generated import GeneratedTasks
from lmx.data.tasks import Maximum
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, above, at_least, below, by_arm
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model
from lmx.objectives.distillation import distillation, top1_distillation
from lmx.objectives.lm import language_model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

LENGTH, ROWS, CORE, CONTINUED = 64, 16, 300, 150
ARMS = ("labels", "top-1 at 0.9", "full distribution", "top-1 at 0.9, teacher continued too")
SUMS = SolvedTasks(problems=GeneratedTasks(tasks=(Maximum(max_digits=1),), count=20_000), form="{prompt}={answer}")
EQUALS = bed.BYTES.encode("=")[0]


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A10", measure)


def measure(bench: Bench) -> Finding:
    """Four continued stages of one distilled student."""
    found = bench.part("scores", partial(_scores, bench))
    match, loss, before = found["match"], found["loss"], found["before"]
    return Finding(
        outcomes={
            "exact match on held-out maths": by_arm(("core student", "core teacher", *ARMS), [*before, *match]),
            "loss on held-out documentation (nats)": by_arm(
                ("core student", "core teacher", *ARMS), [*found["loss before"], *loss]
            ),
        },
        checks=(
            at_least("exact match, labels - top-1 of the stale teacher", match[0] - match[1], 0.0),
            above("exact match, labels - core student", match[0] - before[0]),
            above("exact match, labels - full distribution of the stale teacher", match[0] - match[2], judged=False),
            above("exact match, labels - top-1 of the continued teacher", match[0] - match[3], judged=False),
            below("loss on documentation, labels - top-1 of the stale teacher (nats)", loss[0] - loss[1], judged=False),
        ),
        bed=(
            f"Llamas of width 64 (teacher) and 32, documentation and the largest of three digits in bytes, {CORE} steps of "
            f"{LENGTH * ROWS} with 5% maths, {CONTINUED} with 50%"
        ),
    )


def _scores(bench: Bench) -> dict[str, np.ndarray]:
    """Each [arms, seeds]; "before" of the student and the teacher after the core stage."""
    core, continued = _mixture(5.0), _mixture(50.0)
    first = bed.text(bench.seeds, CORE, batch_size=ROWS, length=LENGTH, data=core)
    second = bed.text([seed + 100 for seed in bench.seeds], CONTINUED, batch_size=ROWS, length=LENGTH, data=continued)
    teacher, student = (bed.model_of(bed.llama(model_dim=width, max_length=LENGTH)) for width in (64, 32))
    labels, labels_of_teacher = language_model(student.apply), language_model(teacher.apply)
    top1 = top1_distillation(student.apply, teacher.apply, weight=0.9)
    old = _trained(teacher, labels_of_teacher, population.initial(teacher, bench.seeds), first, 5e-3)
    new = _trained(teacher, labels_of_teacher, old, second, 2e-3)
    start = _trained(student, top1, population.initial(student, bench.seeds), first, 5e-3, old)
    arms = [(labels, None), (top1, old), (distillation(student.apply, teacher.apply), old), (top1, new)]
    ends = [_trained(student, objective, start, second, 2e-3, params) for objective, params in arms]
    before = [_judged(student, start), _judged(teacher, old)]
    after = [_judged(student, params) for params in ends]
    return {
        "match": np.stack([match for match, _ in after]),
        "loss": np.stack([loss for _, loss in after]),
        "before": np.stack([match for match, _ in before]),
        "loss before": np.stack([loss for _, loss in before]),
    }


def _mixture(maths: float) -> PackedText:
    prose = python_corpus.prose().components[0].source
    return PackedText(components=(Component(source=prose, weight=100.0 - maths), Component(source=SUMS, weight=maths)))


def _trained(
    model: Model, objective: Objective, params: Params, rows: LMBatch, peak: float, teacher: Params | None = None
) -> Params:
    steps = rows.tokens.shape[1]
    rates = population.rates([WarmupCosine(peak=peak, warmup_steps=15, end_ratio=0.02)], steps)
    frozen = {} if teacher is None else {"teacher": jax.tree.map(lambda leaf: leaf[0], teacher)}
    return population.train(bed.spec(model, objective, rows), params, rows, rates=rates, frozen=frozen).params


def _judged(model: Model, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """[seeds] exact match on maths, and loss on documentation."""
    maths = bed.heldout(8, length=LENGTH, data=PackedText(components=(Component(source=SUMS),)))
    hits = population.evaluate(partial(_hits, model), params, maths)
    match = population.mean_over_tokens(hits, maths, np.asarray(maths.tokens) == EQUALS)[0]
    return match, bed.mean_losses(model, params, bed.heldout(16, length=LENGTH))[0]


def _hits(model: Model, params: Params, batch: LMBatch) -> Array:
    return head.token_loss(model.apply(params, batch), partial(likelihood.top1_hits, labels=batch.labels))
