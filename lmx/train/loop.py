"""The training loop: runs a TrainSpec to its last step, through restarts, and leaves metrics and checkpoints behind."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from lmx.checkpoint.checkpointer import Checkpointer, Restored, Retention
from lmx.core import logging, storage
from lmx.core.errors import DiskFullError, RunError
from lmx.core.logging import logger
from lmx.core.types import Array, Params
from lmx.train import nonfinite
from lmx.train.config import LoopConfig, RunContext
from lmx.train.feed import DataExhaustedError, Feed, Loader, place_batch
from lmx.train.hooks import Best, Evaluator, Profiler, better
from lmx.train.interruption import Interrupted, Interruption, watch
from lmx.train.metrics import Meter
from lmx.train.nonfinite import NonFiniteError
from lmx.train.spec import TrainSpec
from lmx.train.state import TrainState, abstract_state, init_state, place_frozen, state_from_params
from lmx.train.step import build_eval_step, build_step
from lmx.train.throughput import Stopwatch, peak_flops

__all__ = ["Best", "Interrupted", "LoopConfig", "LoopResult", "NonFiniteError", "RunContext", "train"]


@dataclasses.dataclass(frozen=True)
class LoopResult:
    """What a finished run leaves.

    Attributes:
      params: of the last step, or of the best one with `LoopConfig.return_best`; on the devices.
      step: the last step.
      tokens: valid tokens trained on, all processes and restarts together.
      skipped: steps whose loss or gradient was not finite.
      metrics: the last value of each metric: "train/...", "eval/..." and, different in every run, "time/...".
      best: the best value of `LoopConfig.best_metric`, or None.
    """

    params: Params
    step: int
    tokens: int
    skipped: int
    metrics: dict[str, float]
    best: Best | None


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
        state = restored.state if restored is not None else _initial(spec, key, init_params)
        if restored is not None:
            loader.set_state(restored.loader)
        loop = _Loop(spec, config, run, place_frozen(spec, frozen or {}), checkpointer, state, restored)
        if loop.step < config.steps:
            loop.run(loader, eval_loader, stack)
        else:
            logger.info("%s: already finished at step %d", run.name, loop.step)
        return loop.result()


class _Loop:
    """The host's side of one run: the state's handle, the numbers that belong to it, and where they go."""

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
        self.skips = config.nonfinite == "skip" or nonfinite.optimizer_skips(state.opt_state)

    def run(self, loader: Loader, eval_loader: Loader | None, stack: contextlib.ExitStack) -> None:
        """Trains to the last step."""
        config, place = self.config, place_batch(self.spec)
        interruption = stack.enter_context(watch())
        self.evaluator = None
        if eval_loader is not None and config.eval_every is not None:
            eval_step = build_eval_step(self.spec)
            self.evaluator = Evaluator(
                eval_step, self.frozen, eval_loader, place=place, batches=config.eval_batches, max_in_flight=config.max_in_flight
            )
        self.writers, self.progress = _open_writers(self.workdir, self.context, config.steps, self.saved_step)
        stack.enter_context(self.writers)
        peak = config.peak_flops or peak_flops(self.spec.mesh.devices.flat[0])
        self.stopwatch = Stopwatch(
            step=self.step,
            tokens=self.meter.tokens,
            flops_per_token=self.context.flops_per_token,
            peak=peak and peak * self.spec.mesh.devices.size,
        )
        self.step_fn = build_step(self.spec)
        profile = Profiler(self.workdir / "profile", first_step=self.step, steps=config.profile_steps)
        self.profiler = stack.enter_context(profile)
        self.feed = stack.enter_context(Feed(loader, place, depth=config.prefetch))
        logger.info("%s", self._announcement())
        if self.evaluator is not None and config.eval_first and self.saved_step is None:
            self._evaluate()
        while self.step < config.steps:
            self._advance()
            self._between_steps(interruption)
        self.checkpointer.wait()

    def result(self) -> LoopResult:
        """What `train` returns."""
        params = self.state.params
        if self.config.return_best and self.best is not None and self.best.step != self.step:
            params = self.checkpointer.restore(self.best.step, abstract_state(self.spec)).state.params
            logger.info(
                "%s: parameters of the best step, %d (%s %.6g)", self.name, self.best.step, self.config.best_metric, self.best.value
            )
        return LoopResult(params, self.step, self.meter.tokens, self.meter.skipped, self.metrics, self.best)

    def _advance(self) -> None:
        """Dispatches one step."""
        try:
            fed = next(self.feed)
        except StopIteration:
            raise DataExhaustedError(
                f"{self.name}: the training data ended after step {self.step} of {self.config.steps}; lower loop.steps or repeat "
                "the data"
            ) from None
        started = time.perf_counter()
        self.state, metrics = self.step_fn(self.state, self.frozen, fed.batch)
        self.step += 1
        self.meter.push(self.step, fed.before, metrics)
        if self.step == self.first_step + 1:
            self._fetch()
            logger.info("%s: first step done after %.1f s, compilation included", self.name, time.perf_counter() - started)
            self.stopwatch.restart(self.step, self.meter.tokens)
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
        stops = interruption.agreed(may_wait=logs)
        if stops:
            logger.info("%s: %s received, saving step %d and leaving", self.name, interruption.name, self.step)
        if stops or improved or self.step == config.steps or self._due(config.checkpoint_every):
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
        }
        best_step = self.best.step if self.best is not None else None
        self.checkpointer.save(self.step, self.state, loader=json.loads(self.feed.position), extras=extras, best_step=best_step)
        self.saved_step = self.step

    def _announcement(self) -> str:
        """What comes next, in one line."""
        config, step = self.config, self.step
        rows, length = jax.tree_util.tree_leaves(self.spec.batch_spec)[0].shape[:2]
        parts = [f"{self.name}: steps {step + 1} to {config.steps} of {rows} x {length} tokens", f"log every {config.log_every}"]
        if config.eval_every is not None:
            parts.append(f"next evaluation at step {_next(step, config.eval_every, config.steps)}")
        parts.append(f"next checkpoint at step {_next(step, config.checkpoint_every or config.steps, config.steps)}")
        return ", ".join(parts)


def _initial(spec: TrainSpec, key: Array, init_params: Callable[[], Params] | None) -> TrainState:
    return init_state(spec, key) if init_params is None else state_from_params(spec, init_params(), key)


def _open_writers(
    workdir: epath.Path, run: RunContext, steps: int, saved_step: int | None
) -> tuple[logging.Writers, logging.ProgressWriter | None]:
    """The metric writers, cut back to the restored step; on all processes but the first they write nothing."""
    if jax.process_index() != 0:
        return logging.Writers(), None
    resume_step = saved_step if saved_step is not None else -1
    progress = logging.ProgressWriter(name=run.name, total=steps, initial=max(resume_step, 0))
    writers: list[logging.MetricWriter] = [logging.JsonLinesWriter(workdir / "metrics.jsonl", resume_step=resume_step)]
    if run.tensorboard:
        writers.append(logging.TensorBoardWriter(workdir / "tensorboard", resume_step=resume_step))
    return logging.Writers(*writers, progress), progress


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
