"""The dtype losses are computed in."""

import jax.numpy as jnp

from lmx.core.types import Array


def at_least_float32(x: Array) -> Array:
    """x in float32; float64 (only present when jax runs with x64) is kept, so that tests can use finite differences."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
