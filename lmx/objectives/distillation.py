"""A student learns from a frozen teacher's distribution over the next token, on given text."""

from collections.abc import Callable, Mapping
from functools import partial

import jax

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms, Weighted
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import divergence, likelihood
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss

Apply = Callable[[Params, LMBatch], Outputs]
LossSum = Callable[[Outputs, Outputs, LMBatch], tuple[Weighted, Metrics]]  # (teacher, student, batch)

LARGE_VOCABULARY = 2**16  # rows from which a block of the vocabulary is cheaper than whole logits of a few tokens


def distillation(
    apply: Apply,
    teacher_apply: Apply,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    vocabulary_blocks: bool | None = None,
    router: RouterLoss = NO_ROUTER_LOSS,
) -> Objective:
    """`(1 - alpha) * cross-entropy + alpha * T^2 KL(teacher || student)`, mean over the tokens of the loss mask.

    Args:
      apply: (params, batch) -> outputs of the student.
      teacher_apply: likewise of the teacher, which may be of another architecture but has the same vocabulary; its parameters are
        `frozen["teacher"]`.
      alpha: in [0, 1], share of the teacher; 1 = no labels at all (Gemma 2).
      temperature: > 0, T.
      vocabulary_blocks: compute the loss over blocks of the vocabulary (`head.distillation_loss_sum`), whose memory does not depend
        on V, instead of chunks of tokens; the numbers are the same. None = from `LARGE_VOCABULARY` rows.
      router: auxiliary losses of the student's MoE routers.

    Returns:
      Objective on `LMBatch`. Metrics, means over the loss mask: "kl" (with the factor T^2), "nll" and "accuracy" on the labels.

    Reference: Hinton et al. (2015), arXiv:1503.02531, section 2; Gemma 2, arXiv:2408.00118, section 3.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha}, the teacher's share of the loss, must lie in [0, 1]")

    def loss_sum(teacher: Outputs, student: Outputs, batch: LMBatch) -> tuple[Weighted, Metrics]:
        large = student.head.shape[0] >= LARGE_VOCABULARY
        if large if vocabulary_blocks is None else vocabulary_blocks:
            options = {"labels": batch.labels, "alpha": alpha, "temperature": temperature}
            return head.distillation_loss_sum(teacher, student, mask=batch.loss_mask, **options)
        return _chunked(partial(_soft_and_hard, alpha=alpha, temperature=temperature))(teacher, student, batch)

    return _from_teacher(apply, teacher_apply, loss_sum, router)


def top1_distillation(apply: Apply, teacher_apply: Apply, *, weight: float = 0.9, router: RouterLoss = NO_ROUTER_LOSS) -> Objective:
    """Cross-entropy against `weight * teacher's top-1 token + (1 - weight) * label`, mean over the tokens of the loss mask.

    Args:
      apply: (params, batch) -> outputs of the student.
      teacher_apply: likewise of the teacher, with the same vocabulary; its parameters are `frozen["teacher"]`.
      weight: in [0, 1], share of the teacher's choice.
      router: auxiliary losses of the student's MoE routers.

    Returns:
      Objective on `LMBatch`. Metrics, means over the loss mask: "top1_mix" (the loss), "nll" and "accuracy" on the labels.

    Reference: Gunter et al. (2024), arXiv:2407.21075 (AFM).
    """
    return _from_teacher(apply, teacher_apply, _chunked(partial(_top1, weight=weight)), router)


def _chunked(loss: Callable[..., tuple[Array, dict[str, Array]]]) -> LossSum:
    """Sum of a per-token `loss(teacher_logits, student_logits, labels=...) -> (loss, metrics)` over chunks of tokens."""
    # One sum for all parts: the student's logits and their gradient are then computed once.
    return lambda teacher, student, batch: head.token_loss_sum(
        teacher, student, partial(loss, labels=batch.labels), mask=batch.loss_mask
    )


def _from_teacher(apply: Apply, teacher_apply: Apply, loss_sum: LossSum, router: RouterLoss) -> Objective:

    def objective(params: Params, frozen: Mapping[str, Params], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        student = apply(params, batch)
        teacher = jax.lax.stop_gradient(teacher_apply(frozen["teacher"], batch))
        _check_vocabulary(student, teacher)
        total, metrics = loss_sum(teacher, student, batch)
        router_terms, router_metrics = router.terms(student, batch.segment_ids)
        return {"distillation": (1.0, total), **router_terms}, {**metrics, **router_metrics}

    return objective


def _check_vocabulary(student: Outputs, teacher: Outputs) -> None:
    if student.head.shape[0] != teacher.head.shape[0]:
        raise ValueError(
            f"distillation needs one vocabulary, but the student's head has {student.head.shape[0]} rows and the teacher's "
            f"{teacher.head.shape[0]}; give both models the same tokenizer and vocab_size"
        )


def _soft_and_hard(
    teacher_logits: Array, student_logits: Array, *, labels: Array, alpha: float, temperature: float
) -> tuple[Array, dict[str, Array]]:
    kl = divergence.forward_kl(teacher_logits, student_logits, temperature=temperature)
    measures = _on_labels(student_logits, labels)
    return (1 - alpha) * measures["nll"] + alpha * kl, {"kl": kl, **measures}


def _top1(teacher_logits: Array, student_logits: Array, *, labels: Array, weight: float) -> tuple[Array, dict[str, Array]]:
    loss = divergence.top1_mix(teacher_logits, student_logits, labels=labels, weight=weight)
    return loss, {"top1_mix": loss, **_on_labels(student_logits, labels)}


def _on_labels(logits: Array, labels: Array) -> dict[str, Array]:
    return {"nll": likelihood.cross_entropy(logits, labels=labels), "accuracy": likelihood.top1_hits(logits, labels)}
