"""Gated feed-forward layers: SwiGLU and GeGLU."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array
from lmx.model.activation import gated
from lmx.model.config import FFNConfig
from lmx.model.execution import Execution
from lmx.model.linear import Linear


class FFN(nn.Module):
    """`down(activation(gate(x)) * up(x))`, no biases.

    Attributes:
      config: width and activation.
      model_dim: D.
      execution: how to run.
      init_std: standard deviation at init, None = fan-in.

    Reference: Shazeer (2020), arXiv:2002.05202, Eq. 6.
    """

    config: FFNConfig
    model_dim: int
    execution: Execution
    init_std: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        wide, narrow, precision = (self.config.ffn_dim,), (self.model_dim,), self.execution.precision
        into = partial(Linear, narrow, axes=("embed", "ffn"), precision=precision, init_std=self.init_std)
        if self.has_variable("params", "gate_up"):  # of unstacked parameters
            gate, up = jnp.split(into((2 * self.config.ffn_dim,), name="gate_up")(x), 2, axis=-1)  # [B, T, F] each
        else:
            gate, up = into(wide, name="gate")(x), into(wide, name="up")(x)
        hidden = self.execution.constrain(gated(gate, up, self.config.activation), ("batch", "length", "activation_ffn"))
        return Linear(wide, narrow, ("ffn", "embed"), precision, self.init_std, name="down")(hidden)
