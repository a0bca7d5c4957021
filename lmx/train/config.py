"""How a loop runs: for how long, and when it logs, evaluates and saves. Nothing here changes what a step computes."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from etils import epath


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Attributes of a run of the loop.

    Attributes:
      steps: optimizer steps in all, those before a restart included.
      log_every: steps between lines of metrics; the last step is always logged.
      eval_every: steps between held-out evaluations (the last step is one too); None = never.
      eval_batches: batches of an evaluation; None = until the loader ends.
      eval_first: evaluate before the first step as well.
      checkpoint_every: steps between checkpoints; None = only at the end, on a signal, and when `best_metric` improves.
      keep_last: newest checkpoints to keep.
      keep_every: keep also each checkpoint whose step is a multiple of this.
      best_metric: metric, such as "eval/loss", whose best checkpoint is kept; a better value is saved at once.
      best_mode: whether lower ("min") or higher ("max") is better.
      return_best: return the parameters of the best checkpoint instead of the last.
      nonfinite: "stop" the run at the next log, evaluation or checkpoint after a step whose loss or gradient is not finite,
        or "skip" such steps and count them. The parameters are untouched either way.
      profile_steps: steps to trace with jax.profiler, after the first two of this process; None = off.
      prefetch: batches put on the device ahead of their use.
      max_in_flight: steps that may be dispatched and unfinished.
      peak_flops: peak FLOP/s of one device for the MFU; None = by its kind, and no MFU where that is unknown (CPUs).
    """

    steps: int
    log_every: int = 20
    eval_every: int | None = None
    eval_batches: int | None = None
    eval_first: bool = False
    checkpoint_every: int | None = 100
    keep_last: int = 2
    keep_every: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    return_best: bool = False
    nonfinite: Literal["stop", "skip"] = "stop"
    profile_steps: int | None = None
    prefetch: int = 2
    max_in_flight: int = 4
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "keep_last", "prefetch", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name}={getattr(self, name)} must be at least 1")
        for name in ("eval_every", "eval_batches", "checkpoint_every", "keep_every", "profile_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"loop.{name}={value} must be at least 1, or None for off")
        for name, allowed in (("best_mode", ("min", "max")), ("nonfinite", ("stop", "skip"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"loop.{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        if self.best_metric is not None and self.eval_every is None:
            raise ValueError(f"loop.best_metric={self.best_metric!r} needs evaluations: set loop.eval_every")
        if self.return_best and self.best_metric is None:
            raise ValueError("loop.return_best needs loop.best_metric, for instance 'eval/loss'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a run lives and what its console and metrics need to know.

    Attributes:
      workdir: directory for `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `profile/`.
      name: what log lines call the run, for instance "stage sft".
      resume_hint: what to do after an interruption; the end of a sentence.
      learning_rate: (updates made so far) -> learning rate of the next, for the metrics only.
      flops_per_token: of a whole step, forward and backward, frozen models included, or a function of the length T that gives
        it; for the MFU.
      tensorboard: also write TensorBoard events.
    """

    workdir: epath.PathLike
    name: str = "train"
    resume_hint: str = "run the same command again to go on from there"
    learning_rate: Callable[[int], float] | None = None
    flops_per_token: float | Callable[[int], float] | None = None
    tensorboard: bool = True
