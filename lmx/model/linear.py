"""Linear maps between groups of axes, with fan-in initialisation and logical axis names."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array, Precision

Axes = tuple[str | None, ...]


def normal_init(fan_in: int, init_std: float | None, axes: Axes) -> Callable[..., Any]:
    """Normal initialiser of standard deviation `init_std`, or fan_in ** -0.5 when that is None, tagged with logical axes."""
    std = 1.0 / math.sqrt(fan_in) if init_std is None else init_std
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class Linear(nn.Module):
    """Contraction of the last axes of x with a kernel of shape [*in_shape, *out_shape], in x's dtype.

    Attributes:
      in_shape: sizes of the contracted axes.
      out_shape: sizes of the new axes.
      axes: logical names of the kernel's axes.
      precision: dtypes.
      init_std: standard deviation at init, None = fan-in.
      bias: add a bias of shape `out_shape`, 0 at init.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: Axes
    precision: Precision
    init_std: float | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., *in_shape] -> [..., *out_shape]."""
        init = normal_init(math.prod(self.in_shape), self.init_std, self.axes)
        kernel: Array = self.param("kernel", init, (*self.in_shape, *self.out_shape), self.precision.params)
        y = jnp.tensordot(x, kernel.astype(x.dtype), axes=len(self.in_shape))
        if self.bias:
            zeros: Callable[..., Any] = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[len(self.in_shape) :])
            bias: Array = self.param("bias", zeros, self.out_shape, self.precision.params)
            y = y + bias.astype(x.dtype)
        return y
