"""The training loop: runs a TrainSpec to its last step, through restarts, and leaves metrics and checkpoints behind."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from lmx import merging
from lmx.checkpoint.checkpointer import Checkpointer, Restored, Retention
from lmx.core import storage
from lmx.core.errors import DiskFullError, RunError
from lmx.core.logging import logger
from lmx.core.types import Array, Params, PyTree
from lmx.data.ramp import Ramp
from lmx.train import nonfinite
from lmx.train.config import LoopConfig, RunContext
from lmx.train.feed import DataExhaustedError, Feed, Loader, place_batch
from lmx.train.hooks import Best, Evaluator, Gate, Profiler, better
from lmx.train.interruption import Interrupted, Interruption, watch
from lmx.train.metrics import Meter
from lmx.train.nonfinite import NonFiniteError
from lmx.train.shapes import Shapes
from lmx.train.spec import TrainSpec
from lmx.train.state import TrainState, abstract_state, init_state, place_frozen, state_from_params, with_opt_state
from lmx.train.step import build_eval_step
from lmx.train.throughput import Stopwatch, peak_flops
from lmx.train.writers import open_writers

__all__ = ["Best", "Interrupted", "LoopConfig", "LoopResult", "NonFiniteError", "RunContext", "train"]


@dataclasses.dataclass(frozen=True)
class LoopResult:
    """What a finished run leaves.

    Attributes:
      params: of the last step, or of the best one with `LoopConfig.return_best`, or averaged; on the devices.
      step: the last step.
      tokens: valid tokens trained on, all processes and restarts together.
      skipped: steps whose loss or gradient was not finite.
      metrics: the last value of each metric: "train/...", "eval/..." and, different in every run, "time/...".
      best: the best value of `LoopConfig.best_metric`, or None.
      opt_state: the optimizer's state after the last step, on the devices.
      opened: whether the run's gate let it end.
    """

    params: Params
    step: int
    tokens: int
    skipped: int
    metrics: dict[str, float]
    best: Best | None
    opt_state: PyTree
    opened: bool = False


def train(
    spec: TrainSpec,
    config: LoopConfig,
    *,
    loader: Loader,
    run: RunContext,
    key: Array,
    frozen: Mapping[str, Params] | None = None,
    init_params: Callable[[], Params] | None = None,
    eval_loader: Loader | None = None,
    ramp: Ramp | None = None,
    init_opt_state: Callable[[], PyTree] | None = None,
    average_steps: Sequence[int] = (),
    gate: Gate | None = None,
) -> LoopResult:
    """Trains to `config.steps`, going on from the newest intact checkpoint in the run's directory if there is one.

    Parameters and metrics ("time/..." aside) do not depend on where the run was interrupted: a checkpoint holds the state, the
    loader's position after the last batch used, and the sums since the last log line; metrics beyond it are cut away.
    The loop dispatches steps without waiting for their results, but for `config.max_in_flight`.

    Args:
      spec: what a step is made of.
      config: how long, and when to log, evaluate and save.
      loader: training batches, at its start.
      run: where to write, and what to call it.
      key: jax.random key of the initialisation and of the steps' randomness.
      frozen: parameters of `spec.frozen_models`, by name.
      init_params: gives the parameters to start from, and is called only if there is no checkpoint; None = initialise from `key`.
      eval_loader: held-out batches, read anew from where it stands now at each evaluation.
      ramp: shapes of the batches by number of steps, which `loader` must give; None = always those of `spec`. The state goes on
        through a change of shape, and a step is compiled once for each.
      init_opt_state: gives the optimizer state to start from, for instance that of an earlier run; called only if there is no
        checkpoint; None = fresh.
      average_steps: return the mean of the parameters of the checkpoints at these steps, which the retention must have kept. (An
        average in the optimizer's state, see `lmx.merging.averaging`, is returned unasked.)
      gate: asked every `gate.every` steps whether the run may end before its last step.

    Returns:
      LoopResult; at once if the run had been finished before.

    Raises:
      Interrupted: SIGTERM or SIGINT came; the state is saved.
      NonFiniteError: a loss or gradient was not finite and `config.nonfinite` is "stop".
      CheckpointError: the checkpoint there is of another architecture, or none is intact.
      DiskFullError: the disk is full; what was saved before is untouched.
      LockedError: another process trains in this directory.
      DataExhaustedError: the loader ended before the last step.
    """
    workdir = storage.as_path(run.workdir)
    if config.eval_every is not None and eval_loader is None:
        raise ValueError(f"loop.eval_every={config.eval_every} needs held-out data; give an eval_loader, or set it to None")
    with _disk_full_explained(workdir, run), contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(storage.lock(workdir, ".train.lock"))
        retention = Retention(last=config.keep_last, every=config.keep_every)
        checkpointer = stack.enter_context(Checkpointer(workdir / "checkpoints", retention))
        restored = checkpointer.restore_latest(abstract_state(spec))
        if restored is not None and restored.step > config.steps:
            raise RunError(
                f"{run.name}: {checkpointer.directory} has a checkpoint at step {restored.step}, beyond loop.steps={config.steps}; "
                "raise loop.steps or use another directory"
            )
        state = restored.state if restored is not None else _initial(spec, key, init_params, init_opt_state)
        if restored is not None:
            loader.set_state(restored.loader)
        loop = _Loop(spec, config, run, place_frozen(spec, frozen or {}), checkpointer, state, restored)
        loop.shapes, loop.gate = Shapes(spec, ramp), gate
        if loop.step < config.steps and not loop.opened:
            loop.run(loader, eval_loader, stack)
        else:
            logger.info("%s: already finished at step %d", run.name, loop.step)
        return loop.result(average_steps)


class _Loop:
    """The host's side of one run: the state's handle, the numbers that belong to it, and where they go."""

    shapes: Shapes
    gate: Gate | None

    def __init__(
        self,
        spec: TrainSpec,
        config: LoopConfig,
        run: RunContext,
        frozen: Mapping[str, Params],
        checkpointer: Checkpointer,
        state: TrainState,
        restored: Restored | None,
    ) -> None:
        self.spec, self.config, self.name, self.context = spec, config, run.name, run
        self.frozen, self.checkpointer, self.state = frozen, checkpointer, state
        self.workdir = storage.as_path(run.workdir)
        self.first_step = self.step = restored.step if restored is not None else 0
        self.saved_step = restored.step if restored is not None else None
        extras: dict[str, Any] = restored.extras if restored is not None else {"meter": None, "metrics": {}, "best": None}
        self.meter = Meter(max_in_flight=config.max_in_flight, record=extras["meter"])
        self.metrics: dict[str, float] = extras["metrics"]
        self.best = Best(**extras["best"]) if extras["best"] is not None else None
        self.opened: bool = extras.get("opened", False)
        self.skips = config.nonfinite == "skip" or nonfinite.optimizer_skips(state.opt_state)

    def run(self, loader: Loader, eval_loader: Loader | None, stack: contextlib.ExitStack) -> None:
        """Trains to the last step."""
        config, place = self.config, place_batch(self.spec)
        interruption = stack.enter_context(watch())
        self.evaluator = None
        if eval_loader is not None and config.eval_every is not None:
            eval_step = build_eval_step(self.shapes.spec(config.steps))
            self.evaluator = Evaluator(
                eval_step, self.frozen, eval_loader, place=place, batches=config.eval_batches, max_in_flight=config.max_in_flight
            )
        self.writers, self.progress = open_writers(self.workdir, self.context, config.steps, self.saved_step)
        stack.enter_context(self.writers)
        peak = config.peak_flops or peak_flops(self.spec.mesh.devices.flat[0])
        self.stopwatch = Stopwatch(
            step=self.step,
            tokens=self.meter.tokens,
            flops_per_token=self._flops_per_token(),
            peak=peak and peak * self.spec.mesh.devices.size,
        )
        profile = Profiler(self.workdir / "profile", first_step=self.step, steps=config.profile_steps)
        self.profiler = stack.enter_context(profile)
        self.feed = stack.enter_context(Feed(loader, place, depth=config.prefetch))
        logger.info("%s", self._announcement())
        if self.evaluator is not None and config.eval_first and self.saved_step is None:
            self._evaluate()
        while self.step < config.steps and not self.opened:
            self._advance()
            self._between_steps(interruption)
        self.checkpointer.wait()

    def result(self, average_steps: Sequence[int]) -> LoopResult:
        """What `train` returns."""
        params = self._averaged()
        if average_steps:
            params = merging.mean(self._saved_params(average_steps))
            logger.info("%s: mean of the parameters of steps %s", self.name, ", ".join(map(str, average_steps)))
        if params is None:
            params = self.state.params
        if self.config.return_best and self.best is not None and self.best.step != self.step:
            params = self.checkpointer.restore(self.best.step, abstract_state(self.spec)).state.params
            logger.info(
                "%s: parameters of the best step, %d (%s %.6g)", self.name, self.best.step, self.config.best_metric, self.best.value
            )
        counts = self.meter.tokens, self.meter.skipped
        return LoopResult(params, self.step, *counts, self.metrics, self.best, self.state.opt_state, self.opened)

    def _averaged(self) -> Params | None:
        """The parameters averaged in the optimizer's state so far, None when there are none."""
        average = merging.find_average(self.state.opt_state)
        if average is None or not int(average.taken):
            return None
        return jax.tree.map(lambda mean, own: mean.astype(own.dtype), average.mean, self.state.params)

    def _saved_params(self, steps: Sequence[int]) -> Iterator[Params]:
        """The parameters of some checkpoints, one after the other."""
        missing = sorted(set(steps).difference(self.checkpointer.steps()))
        if missing:
            raise RunError(
                f"{self.name}: the checkpoints of steps {', '.join(map(str, missing))}, to be averaged, are not in "
                f"{self.checkpointer.directory}; average steps that loop.keep_every keeps"
            )
        for step in steps:
            yield self.checkpointer.restore(step, abstract_state(self.spec)).state.params

    def _flops_per_token(self) -> float | None:
        flops = self.context.flops_per_token
        return flops(self.shapes.length(self.step)) if callable(flops) else flops

    def _advance(self) -> None:
        """Dispatches one step."""
        try:
            fed = next(self.feed)
        except StopIteration:
            raise DataExhaustedError(
                f"{self.name}: the training data ended after step {self.step} of {self.config.steps}; lower loop.steps or repeat "
                "the data"
            ) from None
        first, flops_per_token, started = self.step == self.first_step, self._flops_per_token(), time.perf_counter()
        changes = not first and self.shapes.changes(self.step)
        if changes:
            logger.info("%s: from step %d on %s", self.name, self.step + 1, self.shapes.describe(self.step))
        self.state, metrics = self.shapes.step_fn(self.step)(self.state, self.frozen, fed.batch)
        self.step += 1
        self.meter.push(self.step, fed.before, metrics)
        if first or changes:
            self._fetch()
            which = "first step" if first else "first step of the new shape"
            logger.info("%s: %s done after %.1f s, compilation included", self.name, which, time.perf_counter() - started)
            self.stopwatch.restart(self.step, self.meter.tokens, flops_per_token)
        self.profiler.after_step(self.step, self.state)
        if self.progress is not None:
            self.progress.advance(self.step)

    def _between_steps(self, interruption: Interruption) -> None:
        """Logs, evaluates and saves where it is due; leaves if a signal came."""
        config, improved = self.config, False
        logs = self._due(config.log_every)
        if logs:
            self._log()
        if self.evaluator is not None and self._due(config.eval_every):
            improved = self._evaluate()
        if self.gate is not None and self._due(self.gate.every):
            self._ask(self.gate)
            if self.opened and not logs:
                self._log()
        stops = interruption.agreed(may_wait=logs)
        if stops:
            logger.info("%s: %s received, saving step %d and leaving", self.name, interruption.name, self.step)
        if stops or improved or self.opened or self.step == config.steps or self._due(config.checkpoint_every):
            self._save()
        if stops:
            self.checkpointer.wait()
            raise Interrupted(
                f"{self.name}: stopped by {interruption.name} after step {self.step} of {config.steps}, saved in "
                f"{self.checkpointer.directory / str(self.step)}; {self.context.resume_hint}",
                interruption.number or 0,
            )

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.config.steps)

    def _fetch(self) -> None:
        """Waits for the steps dispatched so far and looks whether all were finite."""
        self.meter.fetch()
        bad = self.meter.bad
        if bad is None:
            return
        if self.skips:
            why, skipped = nonfinite.culprits(bad), self.meter.skipped
            logger.warning("%s: step %d was not finite (%s) and was skipped; %d skipped so far", self.name, bad.step, why, skipped)
            self.meter.bad = None
            return
        self.checkpointer.wait()
        steps = [step for step in self.checkpointer.steps() if step < bad.step]
        good = self.checkpointer.directory / str(steps[-1]) if steps else None
        raise nonfinite.stop(self.name, bad, workdir=self.workdir, good=good)

    def _log(self) -> None:
        """Writes the line of metrics of the steps since the last one."""
        self._fetch()
        self.checkpointer.check()
        values = self.meter.means()
        if self.context.learning_rate is not None:
            values["train/learning_rate"] = float(self.context.learning_rate(max(self.step - 1 - self.meter.skipped, 0)))
        self._write({**values, **self.stopwatch.lap(self.step, self.meter.tokens)})

    def _evaluate(self) -> bool:
        """Writes the held-out metrics; returns whether they are the best so far (never before the first step)."""
        self._fetch()
        assert self.evaluator is not None
        started = time.perf_counter()
        with self.stopwatch.pause():
            values = self.evaluator(self.state.params)
            if (averaged := self._averaged()) is not None:
                of_average = self.evaluator(averaged)
                values |= {name.replace("eval/", "eval_average/", 1): value for name, value in of_average.items()}
        self._write({**values, "time/eval_seconds": time.perf_counter() - started})
        metric = self.config.best_metric
        if metric is None or self.step == 0:
            return False
        if metric not in values:
            raise ValueError(f"loop.best_metric={metric!r} is not among the held-out metrics: {', '.join(sorted(values))}")
        if not better(self.best, values[metric], self.config.best_mode):
            return False
        self.best = Best(self.step, values[metric])
        return True

    def _ask(self, gate: Gate) -> None:
        """Looks whether the run may end here."""
        self._fetch()
        with self.stopwatch.pause():
            values, self.opened = gate(self.state.params)
        self._write(values)

    def _write(self, values: dict[str, float]) -> None:
        self.metrics = {**self.metrics, **values}
        self.writers.write(self.step, values)

    def _save(self) -> None:
        """Starts a checkpoint of this step, unless there is one already."""
        if self.saved_step == self.step:
            return
        self._fetch()
        self.writers.flush()  # first the metrics up to this step, then the checkpoint that a restart cuts them back to
        extras = {
            "meter": self.meter.record(),
            "metrics": self.metrics,
            "best": dataclasses.asdict(self.best) if self.best is not None else None,
            **({"opened": True} if self.opened else {}),
        }
        best_step = self.best.step if self.best is not None else None
        self.checkpointer.save(self.step, self.state, loader=json.loads(self.feed.position), extras=extras, best_step=best_step)
        self.saved_step = self.step

    def _announcement(self) -> str:
        """What comes next, in one line."""
        config, step = self.config, self.step
        parts = [
            f"{self.name}: steps {step + 1} to {config.steps} of {self.shapes.describe(step)}",
            f"log every {config.log_every}",
        ]
        if config.eval_every is not None:
            parts.append(f"next evaluation at step {_next(step, config.eval_every, config.steps)}")
        parts.append(f"next checkpoint at step {_next(step, config.checkpoint_every or config.steps, config.steps)}")
        return ", ".join(parts)


def _initial(
    spec: TrainSpec, key: Array, init_params: Callable[[], Params] | None, init_opt_state: Callable[[], PyTree] | None
) -> TrainState:
    state = init_state(spec, key) if init_params is None else state_from_params(spec, init_params(), key)
    return state if init_opt_state is None else with_opt_state(spec, state, init_opt_state())


def _next(step: int, every: int, last: int) -> int:
    return min((step // every + 1) * every, last)


@contextlib.contextmanager
def _disk_full_explained(workdir: epath.Path, run: RunContext) -> Iterator[None]:
    """Turns a failed write of metrics, events or traces into one sentence; the checkpointer speaks for itself."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if not storage.is_disk_full(error):
            raise
        raise DiskFullError(
            f"{run.name}: the disk is full, writing to {workdir} failed ({error}); earlier checkpoints are untouched; free some "
            "space and run the same command again"
        ) from error
