"""Grouped matrix product; on every backend `jax.lax.ragged_dot`, which XLA lowers to the platform's own kernel."""

import chex
import jax

from lmx.core.types import Array


def grouped_matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    """Product of each row with the matrix of its group; differentiable in x and w.

    Args:
      x: [M, D] rows sorted by group.
      w: [E, D, F] one matrix a group, of x's dtype.
      group_sizes: [E] int32, rows in each group, in order; they sum to M, and a group may be empty.

    Returns:
      [M, F] in x's dtype.
    """
    chex.assert_rank([x, w, group_sizes], [2, 3, 1])
    return jax.lax.ragged_dot(x, w, group_sizes, preferred_element_type=x.dtype)
