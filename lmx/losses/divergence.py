"""Distances between a teacher's distribution over tokens and a student's."""

import math

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import likelihood
from lmx.losses.checks import require_within
from lmx.losses.precision import at_least_float32


def forward_kl(teacher_logits: Array, student_logits: Array, *, temperature: float = 1.0) -> Array:
    """KL(teacher || student) of the softened distributions, times temperature squared.

    It differs from distillation's cross-entropy `-sum P_T log P_S` by the teacher's entropy, a constant: the gradient with respect
    to the student's logits is the same, `temperature * (P_S - P_T)`, and the minimum is 0. The factor T^2 keeps the gradient's
    size when the temperature changes.

    Args:
      teacher_logits: [..., V]; no gradient flows.
      student_logits: [..., V], over the same vocabulary.
      temperature: T > 0, divides both logits.

    Returns:
      [...] float32, nats, at least 0.

    Reference: Hinton et al. (2015), arXiv:1503.02531, section 2; with T = 1 the objective of Gemma 2, arXiv:2408.00118, section 3.
    """
    teacher_logprobs, student_logprobs = _logprobs(teacher_logits, student_logits, temperature)
    return temperature**2 * relative_entropy(teacher_logprobs, student_logprobs)


def reverse_kl(teacher_logits: Array, student_logits: Array, *, temperature: float = 1.0) -> Array:
    """KL(student || teacher) of the softened distributions, times temperature squared: the student keeps to the teacher's modes.

    With the previous policy in the teacher's place it is the per-token trust region of `policy.mirror_descent_loss`, and with the
    reference there the KL penalty of a policy; both without sampling noise. The gradient with respect to the student's logits is
    `temperature * P_S * (log P_S - log P_T - KL)`.

    Args:
      teacher_logits: [..., V]; no gradient flows.
      student_logits: [..., V], over the same vocabulary.
      temperature: T > 0, divides both logits.

    Returns:
      [...] float32, nats, at least 0.

    Reference: Gu et al. (2023), arXiv:2306.08543, Eq. 1 (MiniLLM, of sequences; here of one token).
    """
    teacher_logprobs, student_logprobs = _logprobs(teacher_logits, student_logits, temperature)
    return temperature**2 * relative_entropy(student_logprobs, teacher_logprobs)


def jensen_shannon(teacher_logits: Array, student_logits: Array, *, beta: float, temperature: float = 1.0) -> Array:
    """`beta KL(P || M) + (1 - beta) KL(Q || M)` with `M = beta P + (1 - beta) Q`, P the teacher and Q the student.

    Bounded, by log 2 at beta = 1/2. It vanishes like beta KL(P || Q) towards beta = 0 and like (1 - beta) KL(Q || P) towards
    beta = 1; at the ends themselves it is defined as those KLs without the factor, forward at 0 and reverse at 1.

    Args:
      teacher_logits: [..., V]; no gradient flows.
      student_logits: [..., V], over the same vocabulary; for on-policy distillation at tokens that the student has sampled, through
        which no gradient flows either.
      beta: in [0, 1], weight of the teacher in the mixture.
      temperature: T > 0, divides both logits; the result has the factor T^2.

    Returns:
      [...] float32, nats, at least 0.

    Raises:
      ValueError: beta lies outside of [0, 1].

    Reference: Agarwal et al. (2023), arXiv:2306.13649, section 2 (generalized Jensen-Shannon divergence).
    """
    require_within(0.0, 1.0, beta=beta)
    if beta == 0.0:
        return forward_kl(teacher_logits, student_logits, temperature=temperature)
    if beta == 1.0:
        return reverse_kl(teacher_logits, student_logits, temperature=temperature)
    teacher, student = _logprobs(teacher_logits, student_logits, temperature)
    # Where both are -inf the gradient of logaddexp is NaN; nothing reads the mixture there.
    possible = (teacher > -jnp.inf) | (student > -jnp.inf)
    of_teacher, of_student = (jnp.where(possible, logprobs, 0.0) for logprobs in (teacher, student))
    mixture = jnp.logaddexp(math.log(beta) + of_teacher, math.log1p(-beta) + of_student)
    return temperature**2 * (beta * relative_entropy(teacher, mixture) + (1 - beta) * relative_entropy(student, mixture))


def top1_mix(teacher_logits: Array, student_logits: Array, *, labels: Array, weight: float) -> Array:
    """Cross-entropy against `weight * onehot(argmax teacher) + (1 - weight) * onehot(label)`.

    It trades calibration for the mode: in expectation over labels p the optimum is `weight * onehot(top-1) + (1 - weight) * p`,
    so the likelihood of true labels gets worse by design. Judge it by top-1 accuracy, not by held-out cross-entropy.

    Args:
      teacher_logits: [..., V]; only the argmax is used, the lowest id winning a tie.
      student_logits: [..., V], over the same vocabulary.
      labels: [...] int32 in [0, V).
      weight: in [0, 1], share of the teacher's choice; 0 = plain cross-entropy.

    Returns:
      [...] float32, nats.

    Reference: Gunter et al. (2024), arXiv:2407.21075 (AFM, distillation in core pre-training, weight 0.9).
    """
    chex.assert_equal_shape([teacher_logits, student_logits])
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight={weight} of the teacher's top-1 token must lie in [0, 1]")
    choice = jnp.argmax(teacher_logits, axis=-1).astype(labels.dtype)
    hard = likelihood.cross_entropy(student_logits, labels=labels)
    return weight * likelihood.cross_entropy(student_logits, labels=choice) + (1 - weight) * hard


def relative_entropy(p_logprobs: Array, q_logprobs: Array) -> Array:
    """Sum over the last axis of p (log p - log q): [..., V], [..., V] -> [...] float32; entries of p = 0 add nothing."""
    chex.assert_equal_shape([p_logprobs, q_logprobs])
    present = p_logprobs > -jnp.inf
    difference = jnp.where(present, jnp.where(present, p_logprobs, 0.0) - q_logprobs, 0.0)
    return jnp.sum(jnp.exp(p_logprobs) * difference, axis=-1)


def _logprobs(teacher_logits: Array, student_logits: Array, temperature: float) -> tuple[Array, Array]:
    chex.assert_equal_shape([teacher_logits, student_logits])
    chex.assert_scalar_positive(float(temperature))
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    teacher_logprobs = jax.nn.log_softmax(at_least_float32(teacher_logits) / temperature)
    return teacher_logprobs, jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
