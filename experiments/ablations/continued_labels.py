"""A10: The continued stage is better without distillation.

lmx run experiments/ablations/continued_labels.py --workdir runs/ablations/A10

Hardware: a CPU, 2 cores.  Results: results/A10.json and RESULTS.md.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from configs.data.domains import mixture
from experiments.ablations import afm, bed
from lmx.core.types import Array, Metrics, Params, Terms
from lmx.data.batches import LMBatch
from lmx.data.derived import SolvedTasks
from lmx.data.generated import GeneratedTasks
from lmx.data.sources import PythonCorpus, Source
from lmx.data.tasks import Addition, Maximum
from lmx.eval.claims import Finding, above, at_least, by_arm
from lmx.kernels import head
from lmx.losses import divergence, likelihood
from lmx.model.decoder import Model
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

LENGTH, ROWS, CORE_STEPS, STEPS, PEAK = 64, 8, 160, 200, 5e-3
ARMS = ("labels", "top-1 at 0.9", "full distribution", "top-1 at 0.9, continued teacher", "full, continued teacher")
KNOBS = {
    "top1": np.array([0.0, 0.9, 0.0, 0.9, 0.0], np.float32),
    "full": np.array([0.0, 0.0, 1.0, 0.0, 1.0], np.float32),
    "which": np.array([0, 0, 0, 1, 1], np.int32),  # of the teachers: as it left the core stage, or continued like the student
}
PROBLEMS = GeneratedTasks(tasks=(Maximum(max_digits=1), Addition(max_digits=1)), count=40_000, heldout_count=200, seed=5)
FORM = "Q: {prompt}\nA: {answer}"
DOMAINS: dict[str, Source] = {"web": PythonCorpus(kind="prose"), "maths": SolvedTasks(problems=PROBLEMS, form=FORM)}
CORE, CONTINUED = ({"web": web, "maths": 100.0 - web} for web in (95.0, 40.0))


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A10", measure)


def measure(bench: Bench) -> Finding:
    """Students of the core stage continued on more arithmetic, from labels or from a teacher that has seen little of it."""
    found = bench.part("scores", partial(_scores, bench.seeds))
    exact, web = found["exact match"], found["general loss"]
    return Finding(
        outcomes={
            "exact match on held-out problems": by_arm(ARMS, exact),
            "held-out loss on documentation (nats)": by_arm(ARMS, web),
            "exact match of the teachers": by_arm(("of the core stage", "continued"), found["teachers"]),
        },
        checks=(
            at_least("exact match, labels - top-1 at 0.9", exact[0] - exact[1], 0.0),
            at_least("exact match, labels - full distribution", exact[0] - exact[2], 0.0, judged=False),
            above("exact match, top-1 at 0.9 of the continued teacher - of the core's", exact[3] - exact[1], judged=False),
            at_least("exact match, labels - top-1 at 0.9 of the continued teacher", exact[0] - exact[3], 0.0, judged=False),
        ),
        bed=(
            f"AFM of width 32 with a teacher of 64, documentation and arithmetic in bytes (95 to 5, then 40 to 60), {CORE_STEPS} "
            f"and {STEPS} steps of {ROWS * LENGTH} tokens; exact match teacher-forced"
        ),
    )


def _scores(seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each [arms, seeds]."""
    student, teacher = (bed.model_of(afm.decoder(model_dim=width, max_length=LENGTH)) for width in (32, 64))
    core = bed.text(seeds, CORE_STEPS, batch_size=ROWS, length=LENGTH, data=mixture(DOMAINS, CORE))
    more = bed.text(seeds, STEPS, batch_size=ROWS, length=LENGTH, data=mixture(DOMAINS, CONTINUED))
    first, second = afm.rates([afm.PEAK], CORE_STEPS), afm.rates([PEAK], STEPS)
    old = _from_labels(teacher, population.initial(teacher, seeds), core, first)
    new = _from_labels(teacher, old, more, second)
    start = _from_labels(student, population.initial(student, seeds), core, first)
    trained = population.train(
        bed.spec(student, _objective(student, teacher), more, optimizer=afm.rmsprop()),
        population.repeated(jax.tree.map(lambda leaf: leaf[0], start), len(ARMS)),
        more,
        rates=np.repeat(second, len(ARMS), axis=0),
        knobs=KNOBS,
        frozen={"teachers": jax.tree.map(lambda a, b: np.stack([a[0], b[0]], axis=1), old, new)},
    )
    heldout = bed.heldout(8, batch_size=32, length=LENGTH)
    return {
        "exact match": exact_match(student, trained.params),
        "general loss": bed.mean_losses(student, trained.params, heldout),
        "teachers": np.concatenate([exact_match(teacher, params) for params in (old, new)]),
    }


def _from_labels(model: Model, params: Params, batches: LMBatch, rates: np.ndarray) -> Params:
    return bed.train(model, params, batches, optimizer=afm.rmsprop(), rates=rates).params


def _objective(student: Model, teacher: Model) -> Any:
    """`full KL + (1 - full) top1_mix(weight=top1)` with one of two teachers: traced values, as the mix is linear in its weight."""

    def loss(taught: Array, logits: Array, *, labels: Array, top1: Array, full: Array) -> Array:
        plain, best = (divergence.top1_mix(taught, logits, labels=labels, weight=weight) for weight in (0.0, 1.0))
        return full * divergence.forward_kl(taught, logits) + (1 - full) * ((1 - top1) * plain + top1 * best)

    def objective(params: Params, frozen: Mapping[str, Any], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        taught = teacher.apply(jax.tree.map(lambda leaf: leaf[frozen["which"]], frozen["teachers"]), batch)
        outputs = jax.lax.stop_gradient(taught), student.apply(params, batch)
        shares = {name: frozen[name] for name in ("top1", "full")}
        total, _ = head.token_loss_sum(*outputs, partial(loss, labels=batch.labels, **shares), mask=batch.loss_mask)
        return {"continued": (1.0, total)}, {}

    return objective


def exact_match(model: Model, params: Params) -> np.ndarray:
    """[A, S] share of held-out problems whose every answer token has the highest logit, given the ones before."""
    probe, answers = _probe()
    hits = population.evaluate(partial(_hits, model), params, probe)  # [A, S, 1, B, T]
    return (hits[:, :, 0] >= answers).all(axis=-1).mean(axis=-1)


def _hits(model: Model, params: Params, batch: LMBatch) -> Array:
    return head.token_loss(model.apply(params, batch), partial(likelihood.top1_hits, labels=batch.labels))


def _probe() -> tuple[LMBatch, np.ndarray]:
    """Rows of one held-out problem, leaves [1, B, T], and where its answer stands, [B, T]."""
    rows = PROBLEMS.load("heldout")
    texts = [FORM.format(prompt=rows[index]["prompt"], answer=rows[index]["answer"]) for index in range(len(rows))]
    tokens = np.zeros((len(texts), LENGTH + 1), np.int32)
    labels = np.zeros((len(texts), LENGTH), bool)
    for index, text in enumerate(texts):
        ids = bed.BYTES.encode(text)
        tokens[index, : len(ids)] = ids
        labels[index, len(ids) - 1 - len(rows[index]["answer"]) : len(ids) - 1] = True
    return bed.whole_rows(tokens[None], labels[None]), labels
