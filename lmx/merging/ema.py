"""Exponential moving averages of parameters."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Params
from lmx.merging.linear import check_same_shapes


def step(average: Params, params: Params, decay: Any) -> Params:
    """decay * average + (1 - decay) * params, in the average's dtype.

    Args:
      average: float32 arrays.
      params: arrays of the same shapes.
      decay: in [0, 1]; may be traced.

    Raises:
      ValueError: the average is kept in fewer bits, in which small steps are lost.
    """
    _check_wide(average)
    return jax.tree.map(lambda a, x: a + (x.astype(a.dtype) - a) * (1 - decay), average, params)


def anchor_step(anchor: Params, params: Params, mu: Any) -> Params:
    """(1 - mu) * anchor + mu * params: the moving anchor of WARP's first stage, after each of the policy's updates.

    Args:
      anchor: float32 arrays, at first a copy of the initial policy; never the policy's own buffers, which a step may overwrite.
      params: the policy, arrays of the same shapes.
      mu: in [0, 1], may be traced: 0 stays at the initial policy, exactly, and 1 is the current one, exactly.

    Raises:
      ValueError: `mu` lies outside [0, 1], the trees differ, or the anchor is kept in fewer bits, in which it would stand still.

    Reference: Rame et al. (2024), WARP, arXiv:2406.16768, stage 1.
    """
    if not isinstance(mu, jax.core.Tracer) and not 0 <= mu <= 1:
        raise ValueError(f"mu={mu} must lie in [0, 1]")
    check_same_shapes(anchor, params)
    _check_wide(anchor)

    def move(a: Array, x: Array) -> Array:
        new = x.astype(a.dtype)
        return jnp.where(mu == 1, new, a + (new - a) * mu)

    return jax.tree.map(move, anchor, params)


def _check_wide(average: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(average):
        if leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} of the moving average is {leaf.dtype}, in which small steps are lost; keep it in float32")


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
