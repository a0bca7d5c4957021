"""Sums and means over a mask; a masked value never reaches the result, not even as NaN."""

import chex
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32


def masked_sum(values: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Sum of the values that count.

    Args:
      values: [...] floating point.
      mask: [...] bool of the same shape, True = counts.
      axis: axes to reduce, None = all.

    Returns:
      float32, `values` without the reduced axes; 0 where nothing counts.
    """
    chex.assert_equal_shape([values, mask])
    return jnp.sum(jnp.where(mask, at_least_float32(values), 0.0), axis=axis)


def masked_mean(values: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Mean of the values that count, and 0 (with zero gradient) where nothing counts; arguments as in `masked_sum`."""
    count = jnp.sum(mask, axis=axis)
    return masked_sum(values, mask, axis) / jnp.maximum(count, 1)


def sequence_sum(values: Array, mask: Array) -> Array:
    """Sum over the tokens of each sequence: [B, T] values and bool mask -> [B] float32."""
    chex.assert_rank([values, mask], 2)
    return masked_sum(values, mask, axis=1)
