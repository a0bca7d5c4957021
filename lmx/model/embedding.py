"""The token table, read by rows at the input and, when tied, by the head at the output."""

import math

import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array, Precision
from lmx.model.linear import normal_init


class Table(nn.Module):
    """A [rows, D] table of parameters, rows of standard deviation D ** -0.5 (or `init_std`) at init.

    Attributes:
      rows: number of rows.
      model_dim: D.
      row_axis: logical name of the row axis, None = never sharded.
      precision: dtypes.
      init_std: standard deviation at init, None = D ** -0.5.
    """

    rows: int
    model_dim: int
    row_axis: str | None
    precision: Precision
    init_std: float | None = None

    @nn.compact
    def __call__(self) -> Array:
        """[rows, D] in the parameters' dtype."""
        init = normal_init(self.model_dim, self.init_std, (self.row_axis, "embed"))
        return self.param("table", init, (self.rows, self.model_dim), self.precision.params)


def embed(table: Array, tokens: Array, *, scale: bool, dtype: str) -> Array:
    """Rows of the table; an id outside the table gives NaN rather than a wrong row.

    Args:
      table: [V, D].
      tokens: [B, T] int32.
      scale: multiply by sqrt(D), rounded to `dtype` first as Gemma does (in bfloat16 3584 gives 59.75).
      dtype: activation dtype.

    Returns:
      [B, T, D] in `dtype`.
    """
    x = jnp.take(table, tokens, axis=0, mode="fill", fill_value=jnp.nan).astype(dtype)
    return x * jnp.asarray(math.sqrt(table.shape[1]), dtype) if scale else x
