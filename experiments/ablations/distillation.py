"""G1, G2, G7: distillation beats labels at equal tokens, at every size of the student, and needs no labels.

lmx run experiments/ablations/distillation.py --workdir runs/ablations/G1

One teacher of 64 dimensions, trained on labels for more tokens than its students see; students of 16 to 32 dimensions, the largest
a third of the teacher. Every arm is run at two learning rates and judged at its better one, since labels bear less. The spec's
students of 64 to 128 with a teacher of 256 are those at a quarter of the size.

Hardware: a CPU, 2 cores.  Results: results/G1.json, G2.json, G7.json and RESULTS.md.
"""

import functools

import numpy as np

from experiments.ablations import bed, teaching
from lmx.core.types import PyTree
from lmx.eval.claims import Finding, at_least, at_most, below, by_arm
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, BATCH = 500, 8
RATES = (2e-3, 6e-3)
TEACHER_DIM, DIMS = 64, (16, 24, 32)
ALPHAS = {"labels": 0.0, "teacher": 1.0, "half labels, half teacher": 0.5}


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiments({"G1": beats_labels, "G7": needs_no_labels, "G2": holds_with_size})


def beats_labels(bench: Bench) -> Finding:
    """The largest student, on labels and on the teacher."""
    labels, teacher, _ = _best(_losses(bench, DIMS[-1]))
    return Finding(
        outcomes={"held-out loss (nats)": _table(_losses(bench, DIMS[-1])[:2])},
        checks=(below("held-out loss, teacher - labels (nats)", teacher - labels),),
        bed=_bed(bench, DIMS[-1]),
    )


def needs_no_labels(bench: Bench) -> Finding:
    """The same runs, and a mix of both."""
    labels, teacher, mix = _best(_losses(bench, DIMS[-1]))
    return Finding(
        outcomes={"held-out loss (nats)": _table(_losses(bench, DIMS[-1]))},
        checks=(
            at_most("held-out loss, teacher - half labels, half teacher (nats)", teacher - mix, 0.01),
            below("held-out loss, half labels, half teacher - labels (nats)", mix - labels, judged=False),
        ),
        bed=_bed(bench, DIMS[-1]),
        note="The runs are those of G1.",
    )


def holds_with_size(bench: Bench) -> Finding:
    """Labels against the teacher for three sizes of the student."""
    losses = {dim: _losses(bench, dim)[:2] for dim in DIMS}
    gaps = {dim: np.subtract(*_best(losses[dim])[::-1]) for dim in DIMS}
    smallest, largest = gaps[DIMS[0]].mean(), gaps[DIMS[-1]].mean()
    return Finding(
        outcomes={f"held-out loss of a student of {dim} (nats)": _table(losses[dim]) for dim in DIMS},
        checks=(
            *(below(f"held-out loss of a student of {dim}, teacher - labels (nats)", gaps[dim]) for dim in DIMS),
            at_least("mean gain of the teacher, largest student / smallest", [largest / smallest], 0.5),
        ),
        bed=_bed(bench, *DIMS),
        note=f"The runs of the student of {DIMS[-1]} are those of G1.",
    )


def _losses(bench: Bench, dim: int) -> np.ndarray:
    """[alphas, rates, seeds]"""
    return bench.part(f"losses-{dim}", lambda: _trained(bench.seeds, dim))["held-out"]


def _best(losses: np.ndarray) -> np.ndarray:
    """[alphas, seeds]: each at the rate of the lower mean."""
    return np.stack([rows[rows.mean(axis=-1).argmin()] for rows in losses])


def _table(losses: np.ndarray) -> dict[str, tuple[float, ...]]:
    arms = [f"{arm}, rate {rate:g}" for arm in list(ALPHAS)[: len(losses)] for rate in RATES]
    return by_arm(arms, list(losses.reshape(-1, losses.shape[-1])))


def _bed(bench: Bench, *dims: int) -> str:
    sizes = [bed.model_of(teaching.config(dim)).num_params() // 1000 for dim in (TEACHER_DIM, *dims)]
    loss = bench.part("teacher", lambda: {"held-out": _teacher_loss()})["held-out"]
    return (
        f"Llamas of {', '.join(f'{size}k' for size in sizes[1:])} parameters, a teacher of {sizes[0]}k with a held-out loss "
        f"of {loss:.3f}; Python's documentation in bytes, {STEPS} steps of {BATCH * teaching.LENGTH}"
    )


@functools.cache
def _trained(seeds: tuple[int, ...], dim: int) -> PyTree:
    """Held-out losses [alphas, rates, S]: one program for all arms and seeds; once a process, for the claims that share it."""
    model, teacher = bed.model_of(teaching.config(dim)), bed.model_of(teaching.config(TEACHER_DIM))
    batches = bed.text(seeds, STEPS, batch_size=BATCH, length=teaching.LENGTH)
    alphas = list(ALPHAS.values()) if dim == DIMS[-1] else list(ALPHAS.values())[:2]
    rates = np.concatenate([teaching.rates(STEPS, 1, peak=peak) for _ in alphas for peak in RATES])
    trained = population.train(
        bed.spec(model, teaching.distillation(model, teacher), batches),
        population.initial(model, seeds, arms=len(rates)),
        batches,
        rates=rates,
        knobs={"alpha": np.repeat(np.array(alphas, np.float32), len(RATES))},
        frozen={"teacher": teaching.of_seeds(teaching.teacher(TEACHER_DIM), seeds)},
    )
    losses = bed.mean_losses(model, trained.params, bed.heldout(length=teaching.LENGTH))
    return {"held-out": losses.reshape(len(alphas), len(RATES), len(seeds))}


@functools.cache
def _teacher_loss() -> float:
    return teaching.own_loss(TEACHER_DIM, teaching.teacher(TEACHER_DIM), bed.heldout(length=teaching.LENGTH))
