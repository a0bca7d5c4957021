"""Gated feed-forward layers: SwiGLU and GeGLU."""

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
        gate = Linear(narrow, wide, ("embed", "ffn"), precision, self.init_std, name="gate")(x)  # [B, T, F]
        up = Linear(narrow, wide, ("embed", "ffn"), precision, self.init_std, name="up")(x)  # [B, T, F]
        hidden = self.execution.constrain(gated(gate, up, self.config.activation), ("batch", "length", "activation_ffn"))
        return Linear(wide, narrow, ("ffn", "embed"), precision, self.init_std, name="down")(hidden)
