"""A student learns from what was stored of a teacher's distribution: the teacher itself is not there."""

from collections.abc import Callable, Mapping
from functools import partial

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms
from lmx.data.batches import LMBatch, TeacherBatch
from lmx.kernels import head
from lmx.losses import likelihood, stored_teacher
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss

# (student_logits [..., V], *, ids [..., k], values [..., k], tail [...]) -> [...]; the arrays as in TeacherBatch
StoredLoss = Callable[..., Array]


def stored_distillation(
    apply: Callable[[Params, LMBatch], Outputs], *, loss: StoredLoss, alpha: float = 1.0, router: RouterLoss = NO_ROUTER_LOSS
) -> Objective:
    """`(1 - alpha) * cross-entropy + alpha * loss against the stored teacher`, mean over the tokens of the loss mask.

    `loss=first_choice, alpha=0.9` is AFM's top-1 mix, from one stored id a token.

    Args:
      apply: (params, batch) -> outputs of the student.
      loss: `tail_bucket`, `renormalised`, `drawn` or `first_choice`, or a `partial` of one.
      alpha: in [0, 1], share of the teacher.
      router: auxiliary losses of the student's MoE routers.

    Returns:
      Objective on `TeacherBatch`. Metrics, means over the loss mask: "teacher_loss", "nll" and "accuracy" on the labels.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha}, the teacher's share of the loss, must lie in [0, 1]")

    def objective(params: Params, frozen: Mapping[str, Params], batch: TeacherBatch, key: Array) -> tuple[Terms, Metrics]:
        del frozen, key
        student, text = apply(params, batch.text), batch.text
        arrays = {"ids": batch.ids, "values": batch.values, "tail": batch.tail, "labels": text.labels}
        fn = partial(_mixed, loss=loss, alpha=alpha, **arrays)
        total, metrics = head.token_loss_sum(student, fn, mask=text.loss_mask)
        router_terms, router_metrics = router.terms(student, text.segment_ids)
        return {"distillation": (1.0, total), **router_terms}, {**metrics, **router_metrics}

    return objective


def tail_bucket(student_logits: Array, *, ids: Array, values: Array, tail: Array, temperature: float = 1.0) -> Array:
    """`stored_teacher.tail_kl` of a stored top k."""
    return stored_teacher.tail_kl(student_logits, ids=ids, logprobs=values, tail=tail, temperature=temperature)


def renormalised(student_logits: Array, *, ids: Array, values: Array, tail: Array, temperature: float = 1.0) -> Array:
    """`stored_teacher.renormalised_kl` of a stored top k."""
    del tail
    return stored_teacher.renormalised_kl(student_logits, ids=ids, logprobs=values, temperature=temperature)


def drawn(student_logits: Array, *, ids: Array, values: Array, tail: Array, temperature: float = 1.0) -> Array:
    """`stored_teacher.sampled_cross_entropy` of stored draws."""
    del tail
    return stored_teacher.sampled_cross_entropy(student_logits, ids=ids, counts=values, temperature=temperature)


def first_choice(student_logits: Array, *, ids: Array, values: Array, tail: Array) -> Array:
    """Cross-entropy against the most probable token of a stored top k, k >= 1."""
    del values, tail
    return likelihood.cross_entropy(student_logits, labels=ids[..., 0])


def _mixed(
    student_logits: Array, *, ids: Array, values: Array, tail: Array, labels: Array, loss: StoredLoss, alpha: float
) -> tuple[Array, dict[str, Array]]:
    nll = likelihood.cross_entropy(student_logits, labels=labels)
    of_teacher = loss(student_logits, ids=ids, values=values, tail=tail)
    accuracy = likelihood.top1_hits(student_logits, labels)
    return (1 - alpha) * nll + alpha * of_teacher, {"teacher_loss": of_teacher, "nll": nll, "accuracy": accuracy}
