"""Learning-rate schedules: a frozen config and the number of steps give an optax schedule.

An optax schedule maps the number of updates already made to the next update's rate. During a warm-up of W steps update i, from 0,
uses `peak * (i + 1) / (W + 1)`, so the first update is not wasted and update W is the first at the peak; decay ends at i = steps.

Schedules count updates, never tokens, also where a ramp changes how many tokens an update has; skipped steps don't count. A stage
goes on with the schedule of the stage before it through `Part`, or leads it to its end through `LinearFrom`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
import optax

from lmx.core.types import Array


class Schedule(Protocol):
    """A learning rate over a run of known length."""

    @property
    def peak(self) -> float:
        """The highest rate; optimizers that decay weights apart from it follow the schedule's share of it."""

    def build(self, steps: int) -> optax.Schedule:
        """Maps the number of updates already made ([] int32) to the next update's learning rate ([] float32)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate at every step."""

    value: float

    @property
    def peak(self) -> float:
        """As `Schedule.peak`."""
        return self.value

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        del steps
        return optax.constant_schedule(self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up to `peak`, then half a cosine down to `end_ratio * peak` at the last step.

    Reference: Loshchilov and Hutter (2016), arXiv:1608.03983, Eq. 5, without restarts.
    """

    peak: float
    warmup_steps: int
    end_ratio: float = 0.1

    def __post_init__(self) -> None:
        _check_ratio(self.end_ratio)

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        return _warmup_then(self.peak, self.warmup_steps, steps, lambda x: _between(self.end_ratio, (1 + jnp.cos(math.pi * x)) / 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupLinear:
    """Linear warm-up to `peak`, then a straight line down to `end_ratio * peak` at the last step."""

    peak: float
    warmup_steps: int
    end_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_ratio(self.end_ratio)

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        return _warmup_then(self.peak, self.warmup_steps, steps, lambda x: _between(self.end_ratio, 1 - x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up to `peak`, constant, then a straight line down to `end_ratio * peak` over the last `decay_steps`.

    Reference: Hu et al. (2024), arXiv:2404.06395, section 4 (WSD).
    """

    peak: float
    warmup_steps: int
    decay_steps: int
    end_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_ratio(self.end_ratio)

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        stable_and_decay = steps - self.warmup_steps
        if not 0 < self.decay_steps <= stable_and_decay:
            raise ValueError(f"decay_steps={self.decay_steps} must lie in 1..{stable_and_decay}, the steps left after warm-up")

        def decay(x: Array) -> Array:
            left = (1 - x) * stable_and_decay / self.decay_steps
            return _between(self.end_ratio, jnp.minimum(left, 1.0))

        return _warmup_then(self.peak, self.warmup_steps, steps, decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a schedule that spans several stages: a stage of n steps follows it from `start` to `start + n`.

    Attributes:
      schedule: the whole schedule.
      start: updates made in the stages before.
      total: updates of the whole schedule; the stages may end before it does (Llama 3.1's cosine is longer than its run).
    """

    schedule: Schedule
    start: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.total:
            raise ValueError(f"start={self.start} must lie in 0..{self.total - 1}: the whole schedule has {self.total} steps")

    @property
    def peak(self) -> float:
        """As `Schedule.peak`, of the whole schedule."""
        return self.schedule.peak

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        if self.start + steps > self.total:
            raise ValueError(
                f"a stage of {steps} steps from start={self.start} goes beyond the {self.total} steps of the whole schedule; "
                "raise total or shorten the stage"
            )
        whole, start = self.schedule.build(self.total), self.start
        return lambda count: whole(count + start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearFrom:
    """A straight line from the rate at which an earlier stage stopped down to `end` at the last step: annealing.

    Attributes:
      before: the earlier stage's schedule.
      before_steps: that stage's steps.
      end: the last rate; 0 is reached exactly, at i = steps.
    """

    before: Schedule
    before_steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.before_steps < 1 or self.end < 0:
            raise ValueError(f"before_steps={self.before_steps} must be at least 1, and end={self.end} not negative")

    @property
    def peak(self) -> float:
        """As `Schedule.peak`, of the earlier schedule: what follows the rate's share of it goes on without a jump too."""
        return self.before.peak

    def build(self, steps: int) -> optax.Schedule:
        """As `Schedule.build`."""
        before, last, end = self.before.build(self.before_steps), self.before_steps, self.end

        def schedule(count: Array) -> Array:
            left = jnp.clip((steps - count) / steps, 0.0, 1.0)
            return jnp.asarray(end + (before(last) - end) * left, jnp.float32)

        return schedule


def _check_ratio(end_ratio: float) -> None:
    if not 0.0 <= end_ratio <= 1.0:
        raise ValueError(f"end_ratio={end_ratio} must lie in [0, 1]: it is the last rate over the peak")


def _between(end_ratio: float, x: Array) -> Array:
    return end_ratio + (1 - end_ratio) * x


def _warmup_then(peak: float, warmup_steps: int, steps: int, decay: Callable[[Array], Array]) -> optax.Schedule:
    """Warm-up, then `peak * decay(progress)` with progress going from 0 to 1."""
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie in 0..{steps - 1}: the run has {steps} steps")

    def schedule(count: Array) -> Array:
        warmup = (count + 1) / (warmup_steps + 1)
        progress = jnp.clip((count - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
        return jnp.asarray(peak * jnp.where(count < warmup_steps, warmup, decay(progress)), jnp.float32)

    return schedule
