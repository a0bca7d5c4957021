"""Elementwise functions of gated feed-forward layers."""

from collections.abc import Callable, Mapping

import jax

from lmx.core.types import Array


def silu(x: Array) -> Array:
    """x * sigmoid(x), also named swish."""
    return jax.nn.silu(x)


def gelu_tanh(x: Array) -> Array:
    """GELU in its tanh approximation, as Gemma uses it (1e-4 from the exact one at x = 1)."""
    return jax.nn.gelu(x, approximate=True)


# The functions that a model's file may name.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": silu, "gelu_tanh": gelu_tanh}


def gated(gate: Array, up: Array, activation: Callable[[Array], Array]) -> Array:
    """`activation(gate) * up`; the backward pass keeps gate and up alone and redoes the rest, which is cheaper than storing it."""
    return jax.checkpoint(lambda g, u: activation(g) * u, prevent_cse=False)(gate, up)
