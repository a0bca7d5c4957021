"""Optimizers: a frozen config and the number of steps give an optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Params, PyTree
from lmx.optim import masks
from lmx.optim.schedules import Schedule


class Optimizer(Protocol):
    """What a stage's config holds: an optimizer and its learning rate for a run of known length."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation."""

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

    Reference: Loshchilov and Hutter (2017), arXiv:1711.05101, Algorithm 2.
    """

    schedule: Schedule
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: str | None = masks.VECTORS

    def build(self, steps: int) -> optax.GradientTransformation:
        """As `Optimizer.build`."""
        mask = None if self.no_decay is None else masks.path_mask(self.no_decay, matched=False)
        rate = self.learning_rate(steps)
        return optax.adamw(rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=mask)

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

    def build(self, steps: int) -> optax.GradientTransformation:
        """As `Optimizer.build`."""
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
