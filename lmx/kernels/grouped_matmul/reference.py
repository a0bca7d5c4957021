"""The specification of the grouped matrix product: every row times every matrix, then one picked."""

import jax.numpy as jnp

from lmx.core.types import Array


def grouped_matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    """Product of each row with the matrix of its group, by a dense product with all E matrices.

    Args:
      x: [M, D] rows sorted by group.
      w: [E, D, F] one matrix a group.
      group_sizes: [E] int32, rows in each group, in order, summing to M.

    Returns:
      [M, F] in x's dtype.
    """
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(x.shape[0]), side="right")  # [M]
    products = jnp.einsum("MD,EDF->MEF", x, w)
    return jnp.take_along_axis(products, group[:, None, None], axis=1)[:, 0]  # [M, F]
