"""A differentiable choice of k out of n: weights in [0, 1] that sum to k and sharpen as the temperature falls."""

import jax
import jax.numpy as jnp

from lmx.core.types import Array


def soft_top_k(scores: Array, k: Array | float, eps: Array | float) -> Array:
    """argmax over weights w in [0, 1]^n with sum k of `scores . w + eps * H(w)`, H(w) = -sum w log w.

    The solution is `min(1, exp((scores + a) / eps))` for one number a, found exactly by sorting: the m highest scores have weight
    1, and the rest share k - m as their softmax says. Adding a constant to the scores changes nothing; at eps -> 0 it is the hard
    top k.

    Args:
      scores: [..., n], each row on its own; float32, or float64 when jax runs with x64.
      k: strictly between 0 and n, not necessarily whole; may be traced. No gradient flows.
      eps: > 0, may be traced. No gradient flows.

    Returns:
      [..., n], the weights. With U the weights below 1, `dw_i / ds_j = w_i / eps * (1[i = j] - w_j / sum_U w)` for i, j in U, else
      0: that is the gradient here, and it stays finite however small eps is.

    Reference: Lei et al. (2023), arXiv:2304.04947 (CoDA), section 3.2, which iterates 20 times toward the same solution.
    """
    n = scores.shape[-1]
    if isinstance(k, int | float) and not 0 < k < n:
        raise ValueError(f"k={k} must lie strictly between 0 and n={n}: with k = n there is nothing to choose")
    return _weights(scores, k, eps)


@jax.custom_vjp
def _weights(scores: Array, k: Array | float, eps: Array | float) -> Array:
    return _solve(scores, k, eps)[0]


def _solve(scores: Array, k: Array | float, eps: Array | float) -> tuple[Array, Array]:
    """The weights, and which of them are free: not held at 1."""
    n = scores.shape[-1]
    sorted_scores = -jnp.sort(-scores, axis=-1)
    # normalizers[m]: log-sum-exp of the scores below the m highest; a[m] / eps: what makes these sum to k - m.
    scaled = sorted_scores / eps
    normalizers = jax.lax.cumlogsumexp(scaled, axis=scores.ndim - 1, reverse=True)
    left = k - jnp.arange(n)
    shift = jnp.log(jnp.where(left > 0, left, 1.0)) - normalizers
    fits = (left > 0) & (scaled + shift <= 0)  # the highest of the rest is at most 1
    m = jnp.argmax(fits, axis=-1)[..., None]  # the fewest weights of 1
    free = scores <= jnp.take_along_axis(sorted_scores, m, axis=-1)  # equal scores are never divided
    shares = jax.nn.softmax(jnp.where(free, scores / eps, -jnp.inf), axis=-1)
    return jnp.where(free, jnp.minimum((k - m) * shares, 1.0), 1.0).astype(scores.dtype), free


def _forward(
    scores: Array, k: Array | float, eps: Array | float
) -> tuple[Array, tuple[Array, Array, Array | float, Array | float]]:
    weights, free = _solve(scores, k, eps)
    return weights, (weights, free, k, eps)


def _backward(residuals: tuple[Array, Array, Array | float, Array | float], g: Array) -> tuple[Array, None, None]:
    weights, free, _, eps = residuals
    moving = jnp.where(free, weights, 0.0)
    mean = jnp.sum(moving * g, axis=-1, keepdims=True) / jnp.sum(moving, axis=-1, keepdims=True)
    return (moving / eps * (g - mean)).astype(g.dtype), None, None


_weights.defvjp(_forward, _backward)
