"""What a loop does between steps: held-out evaluation, the best value so far, profiling."""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import jax
from etils import epath

from lmx.core.errors import RunError
from lmx.core.logging import logger
from lmx.core.types import Metrics, Params, PyTree
from lmx.train.feed import Loader
from lmx.train.metrics import mean


class Evaluator:
    """Held-out metrics over always the same batches: totals over weights of the whole set, so padding counts nothing."""

    def __init__(
        self,
        eval_step: Callable[[Params, Mapping[str, Params], PyTree], Metrics],
        frozen: Mapping[str, Params],
        loader: Loader,
        *,
        place: Callable[[PyTree], PyTree],
        batches: int | None,
        max_in_flight: int,
    ) -> None:
        """Remembers where the loader stands now; each evaluation starts there.

        Args:
          eval_step: (params, frozen, batch) -> metrics.
          frozen: parameters of the frozen models.
          loader: held-out batches, as many on every process.
          place: host batch -> batch on the device.
          batches: how many to read; None = until the loader ends.
          max_in_flight: batches that may be dispatched and unfinished.
        """
        self._eval_step, self._frozen, self._loader, self._place = eval_step, frozen, loader, place
        self._batches, self._max_in_flight = batches, max_in_flight
        self._start = json.dumps(loader.get_state())

    def __call__(self, params: Params) -> dict[str, float]:
        """The mean of every metric, under "eval/"."""
        self._loader.set_state(json.loads(self._start))
        sums: dict[str, tuple[float, float]] = {}
        waiting: collections.deque[Metrics] = collections.deque()
        for batch in itertools.islice(_iterate(self._loader), self._batches):
            if len(waiting) == self._max_in_flight:
                _add(sums, waiting.popleft())
            waiting.append(self._eval_step(params, self._frozen, self._place(batch)))
        if not waiting:
            raise RunError("the held-out loader gives no batch; give the evaluation more data or smaller batches")
        for metrics in waiting:
            _add(sums, metrics)
        return {f"eval/{name}": mean(*both) for name, both in sums.items() if both[1] != 0 and name != "tokens"}


@dataclasses.dataclass(frozen=True)
class Best:
    """The best held-out value so far.

    Attributes:
      step: where it was reached.
      value: of the metric that is watched.
    """

    step: int
    value: float


def better(best: Best | None, value: float, mode: Literal["min", "max"]) -> bool:
    """Whether a value beats the best so far; NaN never does, and of equal values the first stays."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best.value if mode == "min" else value > best.value


class Gate(Protocol):
    """A condition on the parameters that ends a run early."""

    @property
    def every(self) -> int:
        """Steps between two looks; the last step is one too."""

    def __call__(self, params: Params) -> tuple[dict[str, float], bool]:
        """Figures for the metrics, and whether the run may end here."""


class Profiler:
    """Traces a few steps of this process with jax.profiler, the first two left out because they compile."""

    def __init__(self, directory: epath.Path, *, first_step: int, steps: int | None) -> None:
        """Args: directory: for the trace; first_step: the step before this process's first; steps: to trace, None = off."""
        self._directory = directory
        self._start = None if steps is None else first_step + 2
        self._end = None if steps is None else first_step + 2 + steps
        self._running = False

    def after_step(self, step: int, state: Any) -> None:
        """Starts or stops the trace after a step; waits for `state` there, so that whole steps are traced."""
        if step == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif self._running and step == self._end:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("profile written to %s; open it with xprof or https://ui.perfetto.dev", self._directory)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _add(sums: dict[str, tuple[float, float]], metrics: Metrics) -> None:
    """Adds a batch's metrics, fetched from the device, to the sums."""
    for name, (total, weight) in jax.device_get({name: (item.total, item.weight) for name, item in metrics.items()}).items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + float(total), before[1] + float(weight))


def _iterate(loader: Loader) -> Iterator[PyTree]:
    """The loader as a generator, which ends where the loader ends."""
    while True:
        try:
            batch = next(loader)
        except StopIteration:
            return
        yield batch
