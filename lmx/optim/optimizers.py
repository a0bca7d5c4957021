"""Optimizers: a frozen config and the number of steps give an optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Params, PyTree
from lmx.optim import masks
from lmx.optim.layout import Layout
from lmx.optim.mup import MuPSimple, require_layout
from lmx.optim.schedules import Schedule


class Optimizer(Protocol):
    """What a stage's config holds: an optimizer and its learning rate for a run of known length."""

    def build(self, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
        """The optax transformation.

        Args:
          steps: of the run.
          layout: the model's width and stacked parameters; optimizers that work by layer or by width need it.
        """

    def learning_rate(self, steps: int) -> optax.Schedule:
        """The schedule it follows, for the logs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.

    Attributes:
      schedule: learning rate; it multiplies the decay too.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: share of a parameter removed per unit of learning rate.
      no_decay: regular expression on paths; parameters that match are not decayed. None = all are decayed.
      mup: factor on the updates by width, None = 1 everywhere. It does not scale the decay.

    Reference: Loshchilov and Hutter (2017), arXiv:1711.05101, Algorithm 2.
    """

    schedule: Schedule
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: str | None = masks.VECTORS
    mup: MuPSimple | None = None

    def build(self, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
        """As `Optimizer.build`; the layout is needed with `mup`."""
        mask = None if self.no_decay is None else masks.path_mask(self.no_decay, matched=False)
        rate = self.learning_rate(steps)
        if self.mup is None:
            return optax.adamw(rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=mask)
        return optax.chain(
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            self.mup.scale(require_layout(layout, "AdamW with mup")),
            optax.add_decayed_weights(self.weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        )

    def learning_rate(self, steps: int) -> optax.Schedule:
        """As `Optimizer.learning_rate`."""
        return self.schedule.build(steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom:
    """Any optax optimizer: `Custom(make=functools.partial(optax.lion, b1=0.95), schedule=...)`.

    Attributes:
      make: called as `make(learning_rate=schedule)`, returns an optax transformation. A named function or a `functools.partial`
        of one, so that a run's config can be written down.
      schedule: learning rate.
    """

    make: Callable[..., optax.GradientTransformation]
    schedule: Schedule

    def build(self, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
        """As `Optimizer.build`."""
        del layout
        return self.make(learning_rate=self.learning_rate(steps))

    def learning_rate(self, steps: int) -> optax.Schedule:
        """As `Optimizer.learning_rate`."""
        return self.schedule.build(steps)


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with state and arithmetic in float32, whatever the dtype of parameters and gradients.

    optax makes moments in the parameters' dtype; in bfloat16 a second moment with b2 = 0.999 never moves. The updates come out in
    float32, and `optax.apply_updates` adds them before it rounds to the parameters' dtype.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> PyTree:
        return inner.init(_float32(params))

    def update(updates: PyTree, state: PyTree, params: Params | None = None, **extra_args: object) -> tuple[PyTree, PyTree]:
        return inner.update(_float32(updates), state, None if params is None else _float32(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def handed_on(opt_state: PyTree, *, momentum: bool = True) -> PyTree:
    """The optimizer state with which a later stage goes on: every schedule is at its first step again.

    Mean squares and the counts of their bias corrections stay as they are.

    Args:
      opt_state: of the stage before.
      momentum: keep first moments and averaged updates too; else they are 0. Adam, which corrects the first moment by the same
        count, then starts with small steps.
    """

    def visit(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=jnp.zeros_like(node.count))
        if momentum:
            return node
        if isinstance(node, optax.EmaState):
            return node._replace(ema=jax.tree.map(jnp.zeros_like, node.ema))
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(mu=jax.tree.map(jnp.zeros_like, node.mu))
        return node

    states = optax.ScaleByScheduleState, optax.EmaState, optax.ScaleByAdamState
    return jax.tree.map(visit, opt_state, is_leaf=lambda node: isinstance(node, states))
