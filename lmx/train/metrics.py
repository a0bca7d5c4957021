"""Metrics on the host: exact sums since the last log line, which a checkpoint carries, and what went wrong in between."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from lmx.core.types import Metrics

# Counted over the whole run instead of averaged over an interval.
_COUNTED = ("tokens", "skipped")
_FETCH_STEPS = 64  # fetch at least this often, so that a long log interval holds no more metrics on the device


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient was not finite.

    Attributes:
      step: its number, counted from 1.
      loader: JSON state of the loader that gives this step's batch next.
      values: the step's metrics.
    """

    step: int
    loader: str
    values: Mapping[str, float]


class Meter:
    """Adds up the metrics of the steps, one by one, in float64 on the host.

    The sums are sequential, so they are the same to the last bit whether or not a checkpoint and a restart came in between.
    A step that was skipped, not being finite or with too large a gradient, counts in `skipped` and in nothing else. Values stay on
    the device until `fetch`.
    """

    def __init__(self, *, max_in_flight: int, record: Mapping[str, Any] | None = None) -> None:
        """Starts from nothing, or from the `record()` of an earlier process.

        Args:
          max_in_flight: how many steps may be dispatched and unfinished; `push` waits beyond that.
          record: JSON value made by `record()`.
        """
        record = record or {"tokens": 0, "skipped": 0, "sums": {}}
        self.tokens: int = record["tokens"]
        self.skipped: int = record["skipped"]
        self.bad: BadStep | None = None
        self._sums: dict[str, tuple[float, float]] = {name: (total, weight) for name, (total, weight) in record["sums"].items()}
        self._pending: collections.deque[tuple[int, str, Metrics]] = collections.deque()
        self._max_in_flight = max_in_flight

    def push(self, step: int, loader: str, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched.

        Args:
          step: its number.
          loader: JSON state of the loader that gives this step's batch next.
          metrics: on the device.
        """
        self._pending.append((step, loader, metrics))
        if len(self._pending) >= self._max_in_flight:
            # A step's outputs appear together: one scalar of the step `max_in_flight` ago tells that it is done.
            jax.block_until_ready(self._pending[-self._max_in_flight][2]["loss"].total)
        if len(self._pending) >= _FETCH_STEPS + self._max_in_flight:
            self.fetch(keep=self._max_in_flight)

    def fetch(self, keep: int = 0) -> None:
        """Brings the pending values to the host and adds them up, all but those of the last `keep` steps; waits for them."""
        taken = [self._pending.popleft() for _ in range(len(self._pending) - keep)]
        values = jax.device_get([{name: (item.total, item.weight) for name, item in metrics.items()} for _, _, metrics in taken])
        for (step, loader, _), metrics in zip(taken, values, strict=True):
            self._add(step, loader, {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()})

    def means(self) -> dict[str, float]:
        """The fetched values since the last call, each total over its weight, with the run's counts; then starts a new interval.

        A metric without weight in the interval, for instance because every step was skipped, is left out.
        """
        means = {f"train/{name}": total / weight for name, (total, weight) in self._sums.items() if weight != 0}
        self._sums = {}
        return {**means, "train/tokens": self.tokens, "train/skipped": self.skipped}

    def record(self) -> dict[str, Any]:
        """JSON value from which another Meter goes on; everything must have been fetched."""
        return {"tokens": self.tokens, "skipped": self.skipped, "sums": {name: list(sums) for name, sums in self._sums.items()}}

    def _add(self, step: int, loader: str, metrics: Mapping[str, tuple[float, float]]) -> None:
        self.tokens += round(metrics["tokens"][0]) if "tokens" in metrics else 0
        if not (math.isfinite(metrics["loss"][0]) and math.isfinite(metrics["grad_norm"][0])):
            self.skipped += 1
            if self.bad is None:
                self.bad = BadStep(step, loader, {name: mean(*sums) for name, sums in metrics.items()})
            return
        if metrics.get("skipped", (0.0, 0.0))[0]:
            self.skipped += 1
            return
        for name, (total, weight) in metrics.items():
            if name not in _COUNTED:
                before = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (before[0] + total, before[1] + weight)


def mean(total: float, weight: float) -> float:
    """total / weight, and 0 where the weight is 0."""
    return total / weight if weight else 0.0
