"""RMSNorm in float32, in the two cast orders that the families use."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array, Precision
from lmx.model.config import NormConfig


def rms_norm(x: Array, gain: Array, config: NormConfig) -> Array:
    """`x / rms(x)` times a gain, over the last axis.

    Llama, Qwen2 and AFM: normalise in float32, cast to x's dtype, then multiply by the gain in that dtype.
    Gemma (`unit_offset`): normalise and multiply by `1 + gain` in float32, then cast.
    In bfloat16 the two differ. (Apple's own code norms AFM in the activation dtype; lmx stays in float32.)

    Args:
      x: [..., D].
      gain: [D].
      config: eps and gain convention.

    Returns:
      [..., D] in x's dtype.

    Reference: Zhang & Sennrich (2019), arXiv:1910.07467, Eq. 4, with eps inside the root.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.eps)
    if config.unit_offset:
        return (normed * (1.0 + gain.astype(jnp.float32))).astype(x.dtype)
    return gain.astype(x.dtype) * normed.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm over the last axis with a gain of its own.

    Attributes:
      config: eps and gain convention.
      axis: logical name of the last axis.
      precision: dtypes.
    """

    config: NormConfig
    axis: str
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D]."""
        init = nn.initializers.zeros if self.config.unit_offset else nn.initializers.ones
        named: Callable[..., Any] = nn.with_logical_partitioning(init, (self.axis,))
        gain: Array = self.param("gain", named, (x.shape[-1],), self.precision.params)
        return rms_norm(x, gain, self.config)
