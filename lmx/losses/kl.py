"""KL divergences between policies, estimated from the log-probabilities of what was sampled.

Every function works element by element: on tokens [B, T] (then `mask` keeps padding out) or on sequences [B], whose
log-probability is the sum over their tokens. Over a sequence, the sum of the tokens' k3 and the k3 of the sum are unbiased for the
same KL of sequences. Where whole logits are at hand, `divergence.reverse_kl` gives each token's KL without noise.

An estimator is a measurement. Of the three, only k2 is also a penalty on KL(policy || reference) when differentiated on the
policy's own samples: k1's expected gradient is 0, and k3's is that of KL(reference || policy). A KL penalty without this trap goes
into the reward (`advantages.shaped_rewards`) or comes from whole logits.

Reference: Schulman (2020), "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
"""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32

MAX_LOG_RATIO = 20.0  # nats; exp of it is 4.9e8, and the products losses make of it stay far from overflow


def log_ratio(policy: Array, other: Array, *, mask: Array | None = None) -> Array:
    """log policy - log other, and no gradient into `other`.

    Args:
      policy: [...] log-probabilities (nats) of tokens or of sequences.
      other: [...] likewise under the policy to compare with.
      mask: [...] bool, True = counts; None = everything does.

    Returns:
      [...] float32; 0, without gradient, where the mask is False, whatever stands there.
    """
    chex.assert_equal_shape([policy, other])
    difference = at_least_float32(policy) - jax.lax.stop_gradient(at_least_float32(other))
    if mask is None:
        return difference
    chex.assert_equal_shape([policy, mask])
    return jnp.where(mask, difference, 0.0)


def ratio(policy: Array, other: Array, *, mask: Array | None = None) -> Array:
    """policy / other, the importance weight of a sample drawn from `other`; arguments as in `log_ratio`.

    Log-ratios are clamped to +-`MAX_LOG_RATIO`; a sample beyond it has no gradient.

    Returns:
      [...] float32, greater than 0; 1 where the mask is False.
    """
    return jnp.exp(_clamped(log_ratio(policy, other, mask=mask)))


def k1(*, policy: Array, reference: Array, mask: Array | None = None) -> Array:
    """The log-ratio itself: unbiased for KL(policy || reference) on samples of the policy, of either sign.

    Args:
      policy: [...] log-probabilities (nats) of tokens or sequences that the policy sampled.
      reference: [...] likewise under the reference; no gradient flows.
      mask: [...] bool, True = counts; None = everything does.

    Returns:
      [...] float32, 0 where the mask is False.
    """
    return log_ratio(policy, reference, mask=mask)


def k2(*, policy: Array, reference: Array, mask: Array | None = None) -> Array:
    """Half the squared log-ratio: biased, not negative, and its expected gradient is that of KL(policy || reference).

    Arguments and result as in `k1`.
    """
    return jnp.square(log_ratio(policy, reference, mask=mask)) / 2


def k3(*, policy: Array, reference: Array, mask: Array | None = None) -> Array:
    """reference / policy - 1 - log(reference / policy): unbiased for KL(policy || reference) on its samples, and not negative.

    Arguments and result as in `k1`. Log-ratios below -`MAX_LOG_RATIO`, where the exponential would overflow, are clamped there.

    Reference: Schulman (2020); as a term of a loss: Shao et al. (2024), arXiv:2402.03300, Eq. 4.
    """
    bounded = jnp.maximum(log_ratio(policy, reference, mask=mask), -MAX_LOG_RATIO)
    return jnp.expm1(-bounded) + bounded


def seq_k3(*, policy: Array, previous: Array, mask: Array | None = None) -> Array:
    """rho log rho - rho + 1, rho = policy / previous: unbiased for KL(policy || previous) on samples of *previous*, not negative.

    The trust region of mirror descent, whose samples come from the policy of the last iteration. Value and gradient are 0 at
    policy = previous, sample by sample: the gradient is grad rho * log rho. The shorter rho log rho is unbiased too, but its
    gradient there is grad log policy, 0 only in expectation, which drowns the first step in noise; it is not offered.

    Args:
      policy: [...] log-probabilities (nats), of whole sequences where the KL is to be that of sequences.
      previous: [...] likewise under the policy that sampled; no gradient flows.
      mask: [...] bool, True = counts; None = everything does.

    Returns:
      [...] float32, at least 0; 0 where the mask is False.
    """
    bounded = _clamped(log_ratio(policy, previous, mask=mask))
    return jnp.exp(bounded) * bounded - jnp.expm1(bounded)


def _clamped(log_ratios: Array) -> Array:
    return jnp.clip(log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO)
