"""Averages of the parameters taken inside the optimizer's state: checkpointed, sharded and restored with it, bit for bit."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Array, Params, PyTree
from lmx.merging import ema


class AverageState(NamedTuple):
    """State of an averaged optimizer.

    Attributes:
      updates: [] int32, updates made.
      taken: [] int32, parameters averaged so far.
      mean: the average, float32, of the parameters' structure; those of the start while `taken` is 0.
      inner: the optimizer's own state.
    """

    updates: Array
    taken: Array
    mean: PyTree
    inner: PyTree


class Average(Protocol):
    """Which parameters of a run are averaged, and how; a frozen config."""

    def check(self, steps: int) -> None:
        """Raises ValueError when a run of `steps` leaves nothing to average."""

    def takes(self, count: Array, steps: int) -> Array:
        """[] bool, whether the parameters after update `count`, counted from 1, go into the average."""

    def add(self, mean: Params, params: Params, taken: Array) -> Params:
        """The average with one more tree; `taken` >= 1 trees are in it already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """The plain mean of the parameters along the end of a run (Polyak averaging).

    Attributes:
      last: steps at the end of the run that are averaged over.
      every: of these, the last step and each `every` steps before it.

    Reference: Polyak and Juditsky (1992), SIAM J. Control Optim. 30:838-855.
    """

    last: int
    every: int = 1

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 1:
            raise ValueError(f"average.last={self.last} and average.every={self.every} must be at least 1")

    def check(self, steps: int) -> None:
        """As `Average.check`."""
        if self.last > steps:
            raise ValueError(f"average.last={self.last} is more than the run's {steps} steps")

    def takes(self, count: Array, steps: int) -> Array:
        """As `Average.takes`."""
        return (count > steps - self.last) & ((steps - count) % self.every == 0)

    def add(self, mean: Params, params: Params, taken: Array) -> Params:
        """As `Average.add`."""
        share = 1.0 / (taken + 1).astype(jnp.float32)
        return jax.tree.map(lambda m, x: m + (x - m) * share, mean, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMA:
    """Exponential moving average of the parameters, begun with those after the first step that is averaged.

    Attributes:
      decay: in [0, 1), weight of all that came before.
      start: updates made before the first that is averaged.
    """

    decay: float
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.start < 0:
            raise ValueError(f"average.decay={self.decay} must lie in [0, 1), and average.start={self.start} not be negative")

    def check(self, steps: int) -> None:
        """As `Average.check`."""
        if self.start >= steps:
            raise ValueError(f"average.start={self.start} must lie in 0..{steps - 1}: the run has {steps} steps")

    def takes(self, count: Array, steps: int) -> Array:
        """As `Average.takes`."""
        del steps
        return count > self.start

    def add(self, mean: Params, params: Params, taken: Array) -> Params:
        """As `Average.add`."""
        del taken
        return ema.step(mean, params, self.decay)


def averaging(optimizer: optax.GradientTransformation, average: Average, steps: int) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, its state also holding an average of the parameters that its updates lead to.

    The parameters are averaged as `params + updates` gives them, in float32: with parameters kept in bfloat16, before they are
    rounded. Skipped steps, which leave the optimizer's state alone, are not averaged.

    Args:
      optimizer: whose updates are added to the parameters as they are.
      average: which parameters, and how.
      steps: of the run.
    """
    average.check(steps)
    own = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> AverageState:
        zero = jnp.zeros((), jnp.int32)
        return AverageState(zero, zero, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), own.init(params))

    def update(
        updates: PyTree, state: AverageState, params: Params | None = None, **extra_args: object
    ) -> tuple[PyTree, AverageState]:
        if params is None:
            raise ValueError("averaging needs the parameters; call update(updates, state, params)")
        updates, inner = own.update(updates, state.inner, params, **extra_args)
        count = optax.safe_increment(state.updates)
        after = jax.tree.map(lambda p, u: (p + u).astype(jnp.float32), params, updates)
        more = jax.tree.map(
            lambda first, later: jnp.where(state.taken == 0, first, later), after, average.add(state.mean, after, state.taken)
        )
        takes = average.takes(count, steps)
        mean = jax.tree.map(lambda new, old: jnp.where(takes, new, old), more, state.mean)
        return updates, AverageState(count, state.taken + takes.astype(jnp.int32), mean, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def find_average(opt_state: PyTree) -> AverageState | None:
    """The average inside an optimizer's state, None when it has none."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    return next((node for node in nodes if isinstance(node, AverageState)), None)
