"""Learning-rate schedules: a frozen config and the number of steps give an optax schedule.

An optax schedule maps the number of updates already made to the next update's rate. During a warm-up of W steps update i, from 0,
uses `peak * (i + 1) / (W + 1)`, so the first update is not wasted and update W is the first at the peak; decay ends at i = steps.
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

    def build(self, steps: int) -> optax.Schedule:
        """Maps the number of updates already made ([] int32) to the next update's learning rate ([] float32)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate at every step."""

    value: float

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
