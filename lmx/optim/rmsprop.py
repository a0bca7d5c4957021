"""AFM's optimizer: RMSProp with clipped updates, momentum on them, and a weight decay that the learning rate does not scale."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Array, Params, PyTree
from lmx.optim import masks
from lmx.optim.layout import Layout, path_name
from lmx.optim.mup import MuPSimple, require_layout
from lmx.optim.schedules import Schedule

# Query, key and value matrices of a layer, which AFM holds as one: with the match cut out of their paths they share a name.
QKV = r"(?<=/)[qkv](?=/kernel$)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSProp:
    """AFM's RMSProp with momentum.

    With t counting the updates made, from 1, and sched = schedule / peak in [0, 1]:

        v = b2 v + (1 - b2) (g^2 + square_eps);  u = g / sqrt(v / (1 - b2^t))
        u = u / max(1, RMS(u) / update_clip)                        by layer
        m = b1 m + (1 - b1) u                                       not debiased: a warm-up of about 1 / (1 - b1) steps
        theta = theta - sched(t) (peak s m + weight_decay theta)    s = muP-simple's factor

    The gradient's global-norm clip of 1 and the skipping of steps whose norm reaches 100 are the training step's: `clip_norm=1.0`
    and `drop_norm=100.0` of `Training`.

    Attributes:
      schedule: learning rate; its `peak` is where muP-simple's base model learns best (AFM: 0.01).
      b1: decay of the averaged update.
      b2: decay of the mean square.
      square_eps: added to the squares.
      update_clip: the largest root mean square of a block's update, None = off. A block is a parameter, or one layer of a stacked
        one (all its experts together).
      joint: regular expression; parameters whose paths agree once its match is cut out form one block. None = each its own.
      weight_decay: share of a parameter removed each step at the schedule's peak; neither the peak nor muP-simple scales it.
      no_decay: regular expression on paths; parameters that match are not decayed. None = all are decayed, as in AFM.
      mup: the factor by width, None = 1 everywhere.

    Reference: Gunter et al. (2024), arXiv:2407.21075, section 3.2.2; order of operations and constants as in apple/axlearn.
    """

    schedule: Schedule
    b1: float = 0.95
    b2: float = 0.95
    square_eps: float = 1e-30
    update_clip: float | None = 1.0
    joint: str | None = QKV
    weight_decay: float = 3.16e-4
    no_decay: str | None = None
    mup: MuPSimple | None = MuPSimple()

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        if self.update_clip is not None and self.update_clip <= 0:
            raise ValueError(f"optimizer.update_clip={self.update_clip} must be positive, or None for no clipping")

    def build(self, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
        """As `Optimizer.build`; the layout is needed."""
        layout, peak = require_layout(layout, "RMSProp"), self.schedule.peak
        if not peak > 0:
            raise ValueError(f"the schedule's peak is {peak}; RMSProp needs a positive one, of which it takes the rate's share")
        rate = self.learning_rate(steps)
        return optax.chain(
            scale_by_mean_square(self.b2, self.square_eps),
            optax.identity() if self.update_clip is None else clip_blocks(self.update_clip, layout, joint=self.joint),
            optax.ema(self.b1, debias=False),
            optax.identity() if self.mup is None else self.mup.scale(layout),
            descend(
                lambda count: rate(count) / peak,
                learning_rate=peak,
                weight_decay=self.weight_decay,
                decayed=None if self.no_decay is None else masks.path_mask(self.no_decay, matched=False),
            ),
        )

    def learning_rate(self, steps: int) -> optax.Schedule:
        """As `Optimizer.learning_rate`."""
        return self.schedule.build(steps)


class MeanSquareState(NamedTuple):
    """Updates made ([] int32), and the running mean of the squared gradient."""

    updates: Array
    mean_square: PyTree


def scale_by_mean_square(decay: Any, square_eps: float) -> optax.GradientTransformation:
    """g / sqrt(v / (1 - decay^t)) with v = decay v + (1 - decay) (g^2 + square_eps)."""

    def init(params: Params) -> MeanSquareState:
        return MeanSquareState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: MeanSquareState, params: Params | None = None) -> tuple[PyTree, MeanSquareState]:
        del params
        count = optax.safe_increment(state.updates)
        squares = jax.tree.map(lambda g, v: decay * v + (1 - decay) * (jnp.square(g) + square_eps), updates, state.mean_square)
        correction = 1 - decay ** count.astype(jnp.float32)
        updates = jax.tree.map(lambda g, v: g / jnp.sqrt(v / correction), updates, squares)
        return updates, MeanSquareState(count, squares)

    return optax.GradientTransformation(init, update)


def clip_blocks(threshold: Any, layout: Layout, *, joint: str | None = None) -> optax.GradientTransformation:
    """u / max(1, RMS(u) / threshold), block by block.

    Args:
      threshold: largest root mean square.
      layout: says which parameters are stacks of layers; each layer is a block.
      joint: as in `RMSProp.joint`.
    """
    stacked = layout.stacked()

    def block_of(path: tuple) -> str:
        name = path_name(path)
        return name if joint is None else re.sub(joint, "", name)

    def update(updates: PyTree, params: Params | None) -> PyTree:
        del params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        totals: dict[str, Array] = {}  # sum of squares, [R, 1, ...] or [], brought to one shape
        counts: dict[str, int] = {}
        for path, leaf in leaves:
            squares, count = _squares(leaf, stacked[path_name(path)])
            totals[block_of(path)] = totals.get(block_of(path), 0.0) + squares
            counts[block_of(path)] = counts.get(block_of(path), 0) + count

        def clip(path: tuple, leaf: Array) -> Array:
            root = jnp.sqrt(totals[block_of(path)] / counts[block_of(path)])
            scale = 1.0 / jnp.maximum(1.0, root / threshold)  # [R] or []
            return leaf * scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim))

        return jax.tree_util.tree_map_with_path(clip, updates)

    return optax.stateless(update)


def _squares(leaf: Array, stacked: bool) -> tuple[Array, int]:
    """Sum of squares of each block of a parameter, [R] or [], and the elements of a block."""
    shape = leaf.shape[1:] if stacked else leaf.shape
    return jnp.sum(jnp.square(leaf), axis=tuple(range(leaf.ndim - len(shape), leaf.ndim))), math.prod(shape)


def descend(
    schedule: optax.Schedule,
    *,
    learning_rate: Any,
    weight_decay: Any,
    decayed: Callable[[Params], PyTree] | None = None,
) -> optax.GradientTransformation:
    """-schedule(count) * (learning_rate * update + weight_decay * parameter).

    Args:
      schedule: number of updates made -> share of the peak, in [0, 1].
      learning_rate: at the peak; may be traced.
      weight_decay: at the peak, per step; may be traced.
      decayed: parameters -> tree of bool, which of them decay; None = all.
    """

    def init(params: Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: Params | None = None
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        if params is None:
            raise ValueError("weight decay needs the parameters; call update(updates, state, params)")
        share = schedule(state.count)
        which = jax.tree.map(lambda _: True, params) if decayed is None else decayed(params)

        def leaf(w: Array, theta: Array, decays: bool) -> Array:
            return -share * (learning_rate * w + weight_decay * theta if decays else learning_rate * w)

        return jax.tree.map(leaf, updates, params, which), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
