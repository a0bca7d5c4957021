"""Distances between a teacher's distribution over tokens and a student's."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import likelihood
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
    chex.assert_equal_shape([teacher_logits, student_logits])
    chex.assert_scalar_positive(float(temperature))
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    teacher_logprobs = jax.nn.log_softmax(at_least_float32(teacher_logits) / temperature)
    student_logprobs = jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
    divergence = jnp.sum(jnp.exp(teacher_logprobs) * (teacher_logprobs - student_logprobs), axis=-1)
    return temperature**2 * divergence


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
