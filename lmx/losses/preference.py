"""Losses on pairs of responses of which one is preferred."""

import chex
import jax

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32


def dpo_loss(
    *,
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    beta: float,
    label_smoothing: float = 0.0,
) -> Array:
    """Negative log-likelihood that the chosen response is preferred, under the implicit reward.

    Args:
      policy_chosen: [B] float32, summed log-probability (nats) of the chosen response.
      policy_rejected: [B] float32, likewise for the rejected response.
      reference_chosen: [B] float32, under the frozen reference; no gradient flows.
      reference_rejected: [B] float32, likewise.
      beta: > 0, strength of the KL constraint.
      label_smoothing: in [0, 0.5), assumed probability that a label is flipped.

    Returns:
      [B] float32, one loss per pair; the caller reduces.

    Reference: Rafailov et al. (2023), arXiv:2305.18290, Eq. 7. Smoothing is not in that equation; it is from Mitchell (2023),
      "A note on DPO with noisy preferences".
    """
    chex.assert_equal_shape([policy_chosen, policy_rejected, reference_chosen, reference_rejected])
    chex.assert_rank(policy_chosen, 1)
    policy_margin = at_least_float32(policy_chosen) - at_least_float32(policy_rejected)
    reference_margin = jax.lax.stop_gradient(at_least_float32(reference_chosen) - at_least_float32(reference_rejected))
    logits = beta * (policy_margin - reference_margin)
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logits) - label_smoothing * jax.nn.log_sigmoid(-logits)
