"""Advantages of responses from their rewards alone: no critic, the other responses to the same prompt are the baseline.

Rewards are [B, G]: G responses to each of B prompts. Advantages are constants of the loss: no gradient flows through any of them.
A NaN reward spoils its whole group, and none else; refuse it on the host, before it gets here, or leave the response out by `mask`.
"""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import kl, masking
from lmx.losses.checks import require_not_negative, require_positive
from lmx.losses.precision import at_least_float32


def shaped_rewards(rewards: Array, *, policy: Array, reference: Array, beta: float | Array) -> Array:
    """r - beta * log(policy / reference), whose expectation over the policy's samples is E[r] - beta KL(policy || reference).

    With it, plain policy gradient ascends that expectation, because the expectation of grad log policy is 0.

    Args:
      rewards: [...] float32, one a response.
      policy: [...] summed log-probabilities (nats) under the policy that sampled.
      reference: [...] likewise under the reference: fixed, an average of policies, or an earlier one.
      beta: >= 0, nats to reward; an array where it is adapted in training.

    Returns:
      [...] float32, a constant.

    Raises:
      ValueError: beta is negative.

    Reference: Ziegler et al. (2019), arXiv:1909.08593, Eq. 2; in MDLOO: Gunter et al. (2024), arXiv:2407.21075, appendix on RLHF.
    """
    require_not_negative(beta=beta)
    chex.assert_equal_shape([rewards, policy])
    return jax.lax.stop_gradient(at_least_float32(rewards) - beta * kl.k1(policy=policy, reference=reference))


def leave_one_out(rewards: Array, *, mask: Array | None = None) -> Array:
    """Each reward less the mean of the other rewards of its group: G / (G - 1) times `group_centred`.

    The baseline of a sample doesn't depend on it, so the policy gradient stays unbiased at any group size.

    Args:
      rewards: [B, G] float32, G >= 2.
      mask: [B, G] bool, False leaves a response out as if it had not been sampled; None = all count.

    Returns:
      [B, G] float32, sums to 0 over a group; 0 where the mask is False, and for a response left alone in its group.

    Raises:
      ValueError: G < 2, so there is no other response to take a baseline from.

    Reference: Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. (2024), arXiv:2402.14740,
      section 2.3 (RLOO).
    """
    _require_group(rewards, 2, "a leave-one-out baseline")
    centred, counts = _centred(rewards, mask)
    return jax.lax.stop_gradient(centred * counts / jnp.maximum(counts - 1, 1))


def group_centred(rewards: Array, *, mask: Array | None = None) -> Array:
    """Each reward less the mean of its group, itself included: GRPO without the division by the standard deviation.

    Args:
      rewards: [B, G] float32.
      mask: [B, G] bool, False leaves a response out; None = all count.

    Returns:
      [B, G] float32, 0 where the mask is False; with G = 1 always 0.

    Reference: Liu et al. (2025), arXiv:2503.20783 (Dr. GRPO).
    """
    _require_group(rewards, 1, "a group mean")
    return jax.lax.stop_gradient(_centred(rewards, mask)[0])


def group_normalised(rewards: Array, *, ddof: int = 1, epsilon: float = 1e-4, mask: Array | None = None) -> Array:
    """`group_centred` over the standard deviation of the group's rewards plus epsilon.

    Groups of small spread are weighted up, those of all equal rewards stay at exactly 0.

    Args:
      rewards: [B, G] float32, G > ddof.
      ddof: 1 divides the squares by G - 1 (sample standard deviation, what most code does), 0 by G (population). The paper says
        "std" and not which; with G = 4 the advantages differ by 15%.
      epsilon: > 0, added to the standard deviation.
      mask: [B, G] bool, False leaves a response out; None = all count.

    Returns:
      [B, G] float32; 0 where the mask is False, and for a response left alone in its group.

    Raises:
      ValueError: ddof is not 0 or 1, epsilon is not positive, or G <= ddof.

    Reference: Shao et al. (2024), arXiv:2402.03300, section 4.1.2 (GRPO, outcome supervision).
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof={ddof} must be 0 (population standard deviation) or 1 (sample standard deviation)")
    require_positive(epsilon=epsilon)
    _require_group(rewards, ddof + 1, f"a standard deviation with ddof={ddof}")
    centred, counts = _centred(rewards, mask)
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / jnp.maximum(counts - ddof, 1)
    return jax.lax.stop_gradient(centred / (jnp.sqrt(variance) + epsilon))


def _centred(rewards: Array, mask: Array | None) -> tuple[Array, Array]:
    """The rewards less their group's mean [B, G], 0 where masked, and the size of each group [B, 1]."""
    rewards = at_least_float32(rewards)
    mask = jnp.ones(rewards.shape, bool) if mask is None else mask
    chex.assert_equal_shape([rewards, mask])
    # Measured from the group's best, so that equal rewards give exactly 0 and not the rounding error of their mean.
    best = jnp.max(jnp.where(mask, rewards, -jnp.inf), axis=1, keepdims=True)
    below = jnp.where(mask, rewards - best, 0.0)
    centred = below - masking.masked_mean(below, mask, axis=1)[:, None]
    return jnp.where(mask, centred, 0.0), jnp.sum(mask, axis=1, keepdims=True)


def _require_group(rewards: Array, least: int, what: str) -> None:
    chex.assert_rank(rewards, 2)
    if rewards.shape[1] < least:
        raise ValueError(
            f"{what} needs at least {least} responses to a prompt, but rewards of shape {rewards.shape} hold {rewards.shape[1]}; "
            "sample more responses a prompt"
        )
