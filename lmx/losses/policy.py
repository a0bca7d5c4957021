"""Policy-gradient losses on responses that a policy has sampled, with advantages from `lmx.losses.advantages`.

A response is one action where log-probabilities are sums over its tokens ([B], ratios of whole sequences), and each token is one
where they are given token by token ([B, T], with the mask of the response's tokens). Both go through the same functions; advantages
are [B] either way, or [B, T] where tokens have their own. How tokens are averaged is the caller's reduction and not part of the
loss: `masking.sequence_mean` and then the mean over sequences is GRPO's, one mean over all tokens of the batch DAPO's, the sum over
a constant length Dr. GRPO's.

Log-probabilities must be taken at the temperature of sampling and without dropout. Those of the policy that sampled (`previous`)
should be the trainer's own, not the generation engine's: the two differ in rounding, and a ratio shows it. Ratios are clamped to
exp(+-20), beyond which a sample has no gradient.
"""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import kl
from lmx.losses.checks import require_not_negative, require_positive
from lmx.losses.precision import at_least_float32


def reinforce_loss(*, policy: Array, advantages: Array, mask: Array | None = None) -> Array:
    """-advantage * log policy: its gradient on samples of the policy is minus that of the expected reward.

    REINFORCE with a KL penalty: advantages are `shaped_rewards` less any baseline that doesn't depend on the sample. RLOO: they are
    `leave_one_out(shaped_rewards(...))`. The value means nothing, only its gradient does, and only at the policy that sampled.

    Args:
      policy: [B] or [B, T] float32, log-probabilities (nats) of responses or of their tokens.
      advantages: [B] float32, or of policy's shape; no gradient flows.
      mask: of policy's shape, bool, True = counts; None = everything does.

    Returns:
      float32 of policy's shape; 0 where the mask is False.

    Reference: Williams (1992), section 4; for language models: Ahmadian et al. (2024), arXiv:2402.14740, Eqs. 6 and 9.
    """
    policy = at_least_float32(policy) if mask is None else kl.log_ratio(policy, jnp.zeros_like(policy), mask=mask)
    return -_constant(advantages, policy) * policy


def clipped_surrogate_loss(
    *,
    policy: Array,
    previous: Array,
    advantages: Array,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    mask: Array | None = None,
) -> Array:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = policy / previous.

    The gradient is 0 where the ratio has left the interval on the side that the advantage asks for, and that of the unclipped
    product everywhere else. Nothing pulls a ratio back: see `mirror_descent_loss`.

    Args:
      policy: [B] or [B, T] float32, log-probabilities (nats) of responses (ratio of sequences) or of their tokens (of tokens).
      previous: likewise under the policy that sampled; no gradient flows.
      advantages: [B] float32, or of policy's shape; no gradient flows.
      clip_low: > 0, how far the ratio may fall below 1.
      clip_high: > 0, how far it may rise above 1 (greater than `clip_low` in DAPO).
      mask: of policy's shape, bool, True = counts; None = everything does.

    Returns:
      float32 of policy's shape; 0 where the mask is False. GRPO adds `beta * kl.k3(policy=, reference=)` to it.

    Raises:
      ValueError: a clip is not positive.

    Reference: Schulman et al. (2017), arXiv:1707.06347, Eq. 7; unequal sides: Yu et al. (2025), arXiv:2503.14476 (DAPO).
    """
    require_positive(clip_low=clip_low, clip_high=clip_high)
    rho = kl.ratio(policy, previous, mask=mask)
    advantage = _constant(advantages, rho)
    loss = -jnp.minimum(rho * advantage, jnp.clip(rho, 1 - clip_low, 1 + clip_high) * advantage)
    return loss if mask is None else jnp.where(mask, loss, 0.0)


def is_clipped(
    *, policy: Array, previous: Array, advantages: Array, clip_low: float = 0.2, clip_high: float = 0.2, mask: Array | None = None
) -> Array:
    """1 where `clipped_surrogate_loss` has no gradient because of its clip, else 0; arguments and shape as there."""
    require_positive(clip_low=clip_low, clip_high=clip_high)
    rho = kl.ratio(policy, previous, mask=mask)
    advantage = _constant(advantages, rho)
    return (((advantage > 0) & (rho > 1 + clip_high)) | ((advantage < 0) & (rho < 1 - clip_low))).astype(jnp.float32)


def mirror_descent_loss(*, policy: Array, previous: Array, advantages: Array, previous_kl: Array, gamma: float | Array) -> Array:
    """-rho A + gamma KL(policy || previous), rho = policy / previous: one step of mirror descent, taken by several gradient steps.

    MDLOO is this loss with advantages `leave_one_out(shaped_rewards(...))`, frozen for the iteration like the ratio's denominator.
    Its exact minimum is previous * exp(A / gamma), normalised; iterated, it converges to reference * exp(r / beta), by a factor of
    |1 - beta / gamma| a step, and so only where gamma > beta / 2. Unlike a clip, the penalty pulls every ratio back.

    Args:
      policy: [B] float32, summed log-probabilities (nats) of responses that `previous` sampled.
      previous: [B] float32, likewise under the policy that sampled; no gradient flows.
      advantages: [B] float32; no gradient flows.
      previous_kl: [B] float32, estimate of KL(policy || previous) for each response, with its gradient, by one of
        - whole vocabulary: `masking.sequence_sum` of `divergence.reverse_kl(previous_logits, policy_logits)` [B, T] over the
          response. Value, gradient and Hessian at policy = previous are those of the KL of sequences; farther away it isn't that
          KL, because the prefixes come from `previous`. The least noise.
        - `kl.seq_k3(policy=, previous=)`: the KL of sequences without bias; noisier, the more so the longer the responses.
        Both leave the first gradient step equal to that of `reinforce_loss`, sample by sample.
      gamma: >= 0, weight of the trust region (1 / step size); 0 = importance-weighted policy gradient, the correction for samples
        of an older policy.

    Returns:
      [B] float32.

    Raises:
      ValueError: gamma is negative.

    Reference: Tomar et al. (2020), arXiv:2005.09814 (on-policy MDPO); with leave-one-out advantages on whole responses: Gunter et
      al. (2024), arXiv:2407.21075 (MDLOO).
    """
    require_not_negative(gamma=gamma)
    chex.assert_equal_shape([policy, previous, advantages, previous_kl])
    chex.assert_rank(policy, 1)
    rho = kl.ratio(policy, previous)
    return -rho * _constant(advantages, rho) + gamma * at_least_float32(previous_kl)


def _constant(advantages: Array, like: Array) -> Array:
    """Advantages without gradient, those of a sequence repeated over its tokens by a trailing axis of length 1."""
    chex.assert_equal_shape_prefix([advantages, like], advantages.ndim)
    advantages = jax.lax.stop_gradient(at_least_float32(advantages))
    return advantages.reshape(*advantages.shape, *[1] * (like.ndim - advantages.ndim))
