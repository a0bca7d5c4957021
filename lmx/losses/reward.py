"""Losses and measures of reward models that compare two responses."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32


def bradley_terry_loss(*, chosen: Array, rejected: Array, margin: Array | None = None) -> Array:
    """Negative log-likelihood that the chosen response wins: `-log sigmoid(chosen - rejected - margin)`.

    Args:
      chosen: [B] float32, rewards of the preferred responses.
      rejected: [B] float32, rewards of the others.
      margin: [B] float32, how much better the preferred one must be; None = 0.

    Returns:
      [B] float32, one loss per pair.

    Reference: Bradley and Terry (1952); margin: Touvron et al. (2023), arXiv:2307.09288, Eq. 2.
    """
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_rank(chosen, 1)
    difference = at_least_float32(chosen) - at_least_float32(rejected)
    if margin is not None:
        chex.assert_equal_shape([chosen, margin])
        difference = difference - margin
    return -jax.nn.log_sigmoid(difference)


def pairwise_accuracy(*, chosen: Array, rejected: Array) -> Array:
    """1 where the chosen response has the higher score, 1/2 on a tie, else 0: [B], [B] -> [B] float32."""
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_rank(chosen, 1)
    return (jnp.sign(at_least_float32(chosen) - at_least_float32(rejected)) + 1) / 2
