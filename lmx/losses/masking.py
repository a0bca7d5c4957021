"""Sums and means over a mask; a masked value never reaches the result, not even as NaN."""

from collections.abc import Sequence

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


def sequence_mean(values: Array, mask: Array) -> Array:
    """Mean over the tokens of each sequence: [B, T] values and bool mask -> [B] float32, 0 where a row has none.

    Of log-probabilities, the length-normalised form that SimPO and IPO on sequences take.
    """
    chex.assert_rank([values, mask], 2)
    return masked_mean(values, mask, axis=1)


def without_tokens(mask: Array, labels: Array, *, token_ids: Sequence[int]) -> Array:
    """The mask without the labels that are one of `token_ids`, such as a chat format's end-of-turn and header tokens.

    Under `sequence_sum` of log-probabilities it gives the preference loss of Llama 3.1, in which formatting tokens, common to both
    responses, are neither raised nor lowered. The NLL term beside it keeps the whole mask: it is there to hold the format.

    Args:
      mask: [B, T] bool.
      labels: [B, T] int32.
      token_ids: ids to leave out; none leaves the mask as it is.

    Returns:
      [B, T] bool.

    Reference: Dubey et al. (2024), arXiv:2407.21783, section 4.1.4 ("masking out formatting tokens in DPO loss").
    """
    chex.assert_equal_shape([mask, labels])
    return mask & ~jnp.isin(labels, jnp.asarray(token_ids, labels.dtype))
