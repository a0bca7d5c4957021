"""Exponential moving averages of parameters."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.types import Params
from lmx.merging.linear import check_same_shapes


def step(average: Params, params: Params, decay: Any) -> Params:
    """decay * average + (1 - decay) * params, in the average's dtype.

    Args:
      average: float32 arrays.
      params: arrays of the same shapes.
      decay: in [0, 1]; may be traced.
    """
    return jax.tree.map(lambda a, x: a + (x.astype(a.dtype) - a) * (1 - decay), average, params)


def exponential_mean(trees: Iterable[Params], decay: float) -> Params:
    """Exponential moving average along a sequence of parameters, accumulated in float32, the first tree its start.

    Args:
      trees: oldest first, read one at a time.
      decay: in [0, 1): weight of all that came before when a tree is added.

    Returns:
      The average, in the first tree's dtypes.

    Raises:
      ValueError: no tree, a decay outside [0, 1), or trees of different models.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must lie in [0, 1)")
    average: Params = None
    dtypes: Params = None
    for tree in trees:
        if average is None:
            dtypes = jax.tree.map(lambda x: x.dtype, tree)
            average = jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)
            continue
        check_same_shapes(average, tree)
        average = step(average, tree, decay)
    if average is None:
        raise ValueError("the average of no parameters: give at least one model")
    return jax.tree.map(lambda x, dtype: x.astype(dtype), average, dtypes)
