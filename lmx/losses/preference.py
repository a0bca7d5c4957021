"""Losses on responses that were preferred to others, or judged good or bad on their own.

Log-probabilities of responses come in as [B]: sums over the tokens that count (`masking.sequence_sum`), or means over them
(`masking.sequence_mean`) for the length-normalised form of any of these losses. Tokens that all responses share, such as a chat
format's, are left out by the mask of that sum (`masking.without_tokens`). A log-likelihood term on the chosen responses is the
objective's, with the whole mask.
"""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import kl, masking
from lmx.losses.checks import require_not_negative, require_positive, require_within
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
      label_smoothing: in [0, 0.5), assumed probability that a label is flipped (above it, the labels are read the other way).

    Returns:
      [B] float32, one loss per pair; the caller reduces.

    Raises:
      ValueError: beta is not positive, or label_smoothing not a probability.

    Reference: Rafailov et al. (2023), arXiv:2305.18290, Eq. 7. Smoothing is not in that equation; it is from Mitchell (2023),
      "A note on DPO with noisy preferences".
    """
    require_positive(beta=beta)
    require_within(0.0, 1.0, label_smoothing=label_smoothing)
    logits = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logits) - label_smoothing * jax.nn.log_sigmoid(-logits)


def robust_dpo_loss(
    *,
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    beta: float,
    flip_rate: float,
) -> Array:
    """DPO's loss corrected for a known share of flipped labels: its expectation over the flips is `dpo_loss` on the true ones.

    It may be negative. Smoothing, in contrast, moves the optimum to a finite margin.

    Args:
      policy_chosen: [B] float32, summed log-probability (nats) of the response labelled as chosen.
      policy_rejected: [B] float32, likewise for the other one.
      reference_chosen: [B] float32, under the frozen reference; no gradient flows.
      reference_rejected: [B] float32, likewise.
      beta: > 0, strength of the KL constraint.
      flip_rate: in [0, 0.5), probability that a label is flipped; 0 = `dpo_loss`.

    Returns:
      [B] float32, one loss per pair.

    Raises:
      ValueError: beta is not positive, or flip_rate not in [0, 0.5).

    Reference: Chowdhury et al. (2024), arXiv:2403.00409 (rDPO).
    """
    require_positive(beta=beta)
    if not 0.0 <= flip_rate < 0.5:
        raise ValueError(
            f"flip_rate={flip_rate} must lie in [0, 0.5): at 0.5 labels hold no information, above it swap the responses"
        )
    logits = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    kept, flipped = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return ((1 - flip_rate) * kept - flip_rate * flipped) / (1 - 2 * flip_rate)


def ipo_loss(
    *, policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, tau: float
) -> Array:
    """Squared distance of the log-ratio margin from 1 / (2 tau).

    The optimum is finite even where a preference is never contradicted: the margin, then 1 / (2 tau), is (p - 1/2) / tau for
    preferences of probability p. On sequences the authors' later advice is means over tokens rather than sums: give the
    log-probabilities as such.

    Args:
      policy_chosen: [B] float32, log-probability (nats) of the chosen response: sum over its tokens in the paper, or mean.
      policy_rejected: [B] float32, likewise for the rejected response.
      reference_chosen: [B] float32, under the frozen reference; no gradient flows.
      reference_rejected: [B] float32, likewise.
      tau: > 0, strength of the KL constraint; it plays the part of DPO's beta.

    Returns:
      [B] float32, one loss per pair; 1 / (4 tau^2) where policy and reference are equal.

    Raises:
      ValueError: tau is not positive.

    Reference: Azar et al. (2023), arXiv:2310.12036, Eq. 17.
    """
    require_positive(tau=tau)
    return jnp.square(_margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected) - 1 / (2 * tau))


def simpo_loss(*, policy_chosen: Array, policy_rejected: Array, beta: float, margin: float) -> Array:
    """-log sigmoid(beta * (chosen - rejected) - margin) of mean log-probabilities: DPO without a reference.

    Args:
      policy_chosen: [B] float32, *mean* log-probability (nats) of the chosen response's tokens (`masking.sequence_mean`).
      policy_rejected: [B] float32, likewise for the rejected response.
      beta: > 0, scale of the reward (2 to 10 in the paper, where DPO has 0.1).
      margin: >= 0, gamma, by how much the chosen reward should exceed the other.

    Returns:
      [B] float32, one loss per pair.

    Raises:
      ValueError: beta is not positive, or margin negative.

    Reference: Meng et al. (2024), arXiv:2405.14734, Eq. 6.
    """
    require_positive(beta=beta)
    require_not_negative(margin=margin)
    chex.assert_equal_shape([policy_chosen, policy_rejected])
    chex.assert_rank(policy_chosen, 1)
    return -jax.nn.log_sigmoid(beta * (at_least_float32(policy_chosen) - at_least_float32(policy_rejected)) - margin)


def kto_loss(
    *,
    policy: Array,
    reference: Array,
    desirable: Array,
    reference_point: Array,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Array:
    """One minus the value of a response's implicit reward, as people weigh gains and losses from a reference point.

    A response is judged on its own: no pair is needed.

    Args:
      policy: [B] float32, summed log-probability (nats) of the response.
      reference: [B] float32, under the frozen reference; no gradient flows.
      desirable: [B] bool, True = a good response, False = a bad one.
      reference_point: [] float32, nats, as `kto_reference_point` gives it; no gradient flows.
      beta: > 0, how soon gains saturate.
      desirable_weight: > 0, weight of good responses.
      undesirable_weight: > 0, of bad ones.

    Returns:
      [B] float32 in [0, weight]; half the weight where policy = reference and the reference point is 0.

    Raises:
      ValueError: beta or a weight is not positive.

    Reference: Ethayarajh et al. (2024), arXiv:2402.01306, Eq. 8.
    """
    require_positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    chex.assert_equal_shape([policy, reference, desirable])
    chex.assert_rank([policy, reference_point], [1, 0])
    gain = kl.log_ratio(policy, reference) - jax.lax.stop_gradient(at_least_float32(reference_point))
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where the sigmoid is near 1.
    return weight * jax.nn.sigmoid(beta * jnp.where(desirable, -gain, gain))


def kto_reference_point(*, policy: Array, reference: Array, mask: Array) -> Array:
    """Estimate of KL(policy || reference) over a batch, at least 0 and without gradient.

    Args:
      policy: [B] float32, summed log-probability (nats) of responses set against *other* rows' prompts (the paper shifts the
        responses of a batch by one), so that it doesn't depend on how good they are.
      reference: [B] float32, likewise under the frozen reference.
      mask: [B] bool, True = counts.

    Returns:
      [] float32, nats.

    Reference: Ethayarajh et al. (2024), arXiv:2402.01306, section 4.1 (z_0 in practice).
    """
    chex.assert_rank([policy, mask], 1)
    mean = masking.masked_mean(kl.k1(policy=policy, reference=reference), mask)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _margin(policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array) -> Array:
    """[B], by how much more the policy has raised the chosen response over the reference than the rejected one."""
    chex.assert_equal_shape([policy_chosen, policy_rejected, reference_chosen, reference_rejected])
    chex.assert_rank(policy_chosen, 1)
    policy_margin = at_least_float32(policy_chosen) - at_least_float32(policy_rejected)
    return policy_margin - jax.lax.stop_gradient(at_least_float32(reference_chosen) - at_least_float32(reference_rejected))
