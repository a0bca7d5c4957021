"""Checkpoints of a running training: state, data position and loop record, saved asynchronously and visible only when complete."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from lmx.checkpoint import record as records
from lmx.checkpoint.reading import read
from lmx.checkpoint.record import CheckpointError, DamagedError, MismatchError
from lmx.core import storage
from lmx.core.errors import DiskFullError, RunError
from lmx.core.logging import logger
from lmx.core.types import PyTree

FORMAT = 1
_REMOVED = "removed"
"""Subdirectory to which a pruned checkpoint is renamed before its files go: a kill in between never leaves half a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      step: the step after which it was taken.
      state: pytree of arrays, on the devices and with the shardings asked for.
      loader: state of this process's data loader; set, it gives the batch of step + 1 next.
      extras: what the loop had recorded (JSON).
    """

    step: int
    state: PyTree
    loader: dict[str, Any]
    extras: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
      last: how many of the newest, >= 1.
      every: also each whose step is a multiple of this.
    """

    last: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"retention.last={self.last} must be at least 1, or a run could not go on")
        if self.every is not None and self.every < 1:
            raise ValueError(f"retention.every={self.every} must be at least 1, or None")


class Checkpointer:
    """Saves, restores and prunes the checkpoints `<directory>/<step>/`; a context manager.

    A save copies the state off the devices and returns; a thread writes it to a temporary directory that is renamed when it is
    complete, and only then are older checkpoints removed, each renamed before its files go. A failed or killed save therefore
    leaves the earlier ones untouched. (A bucket has no rename: there, a kill may leave half a pruned checkpoint, which
    `restore_latest` passes over.)
    """

    def __init__(self, directory: epath.PathLike, retention: Retention = Retention()) -> None:
        """Opens (or creates) a directory of checkpoints and removes what a kill left half written or half removed."""
        self._directory = storage.as_path(directory)
        self._preservation = _Preservation(retention)
        self._saving: int | None = None
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preservation,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            save_root_metadata=False,
            todelete_subdir=_REMOVED,
        )
        self._empty_removed()
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("state", "record"))

    @property
    def directory(self) -> epath.Path:
        """Where the checkpoints lie."""
        return self._directory

    def steps(self) -> Sequence[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(step for step in self._manager.all_steps() if step != self._saving)

    def save(
        self, step: int, state: PyTree, *, loader: Mapping[str, Any], extras: Mapping[str, Any], best_step: int | None = None
    ) -> None:
        """Starts to save; waits first for the save before it.

        Args:
          step: training step that the state has reached; there must be no checkpoint of it yet.
          state: pytree of arrays; they may be donated as soon as this returns.
          loader: JSON state of this process's data loader.
          extras: JSON record of the loop, the same on every process.
          best_step: an earlier step (or this one) that must not be pruned.

        Raises:
          DiskFullError: this save or the one before it found the disk full.
        """
        self.wait()
        self._preservation.best_step = best_step
        record = {
            "format": FORMAT,
            "step": step,
            "arrays": records.with_digests(state),
            "loaders": _gather(dict(loader)),
            "extras": dict(extras),
        }
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self._saving = step
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Raises what went wrong in a save that has ended meanwhile; never waits."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is complete.

        Raises:
          DiskFullError: it found the disk full; its partial files are removed, earlier checkpoints are untouched.
          CheckpointError: it failed otherwise.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None
        self._empty_removed()

    def restore_latest(self, abstract: PyTree) -> Restored | None:
        """The newest intact checkpoint, or None if there is none at all.

        A damaged checkpoint is passed over, with an error in the log, and renamed to `<step>.damaged` once an older one has
        been restored: the run repeats the steps since then and ends with the same parameters.

        Args:
          abstract: pytree of jax.ShapeDtypeStruct with shardings, the state that the run expects.

        Raises:
          MismatchError: the newest readable checkpoint is of another architecture.
          DamagedError: there are checkpoints and none of them is intact.
        """
        damaged: list[DamagedError] = []
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, abstract)
            except DamagedError as error:
                logger.error("%s", error)
                damaged.append(error)
                continue
            if damaged:
                logger.error("going on from the older checkpoint at step %d; the steps after it are repeated", step)
                self._set_aside(after=step)
            return restored
        if damaged:
            raise DamagedError(
                f"none of the {len(damaged)} checkpoints in {self._directory} is intact (the newest: {damaged[0]}); "
                "restore the directory from a copy, or remove it to start again"
            )
        return None

    def restore(self, step: int, abstract: PyTree) -> Restored:
        """The checkpoint of one step.

        Args:
          step: one of `steps()`.
          abstract: pytree of jax.ShapeDtypeStruct with shardings.

        Raises:
          MismatchError: it is of another architecture; names the first parameter that differs.
          DamagedError: it was cut short or changed; names the earlier checkpoint to go back to.
        """
        where = f"the checkpoint {self._directory / str(step)}"
        record = self._read(step, record=ocp.args.JsonRestore()).record
        if not {"arrays", "loaders", "extras"} <= set(record):
            raise DamagedError(f"{where} is damaged: its record is incomplete{self._earlier(step)}")
        records.check_same(record["arrays"], abstract, where)
        state = self._read(step, state=ocp.args.StandardRestore(abstract)).state
        records.check_digests(record["arrays"], state, where, self._earlier(step))
        loaders = record["loaders"]
        if len(loaders) != jax.process_count():
            raise MismatchError(
                f"{where} holds the data positions of {len(loaders)} processes and this run has {jax.process_count()}; "
                "go on with as many as before"
            )
        return Restored(step, state, loaders[jax.process_index()], record["extras"])

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        """Reads some items of a checkpoint."""
        where = f"the checkpoint {self._directory / str(step)}"
        return read(lambda: self._manager.restore(step, args=ocp.args.Composite(**items)), where, self._earlier(step))

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            self.wait()
        except RunError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # another error is on its way up, and matters more
        self._manager.close()

    def _empty_removed(self) -> None:
        """Deletes the files of pruned checkpoints."""
        removed = self._directory / _REMOVED
        if jax.process_index() == 0 and removed.exists():
            removed.rmtree()

    def _failed(self, error: Exception) -> Exception:
        """Cleans up after a failed save and says in a sentence what happened."""
        step, self._saving = self._saving, None
        if jax.process_index() == 0:
            for partial in self._directory.glob(f"{step}.*tmp*"):
                partial.rmtree()
        self._manager.reload()  # what was about to be pruned after this save is still there
        remaining = ", ".join(str(other) for other in self.steps() if other != step) or "none"
        if storage.is_disk_full(error):
            return DiskFullError(
                f"the disk is full: the checkpoint of step {step} could not be written to {self._directory}; earlier checkpoints "
                f"are untouched (steps: {remaining}); free some space and run the same command again"
            )
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self._directory} ({error}); earlier checkpoints are "
            f"untouched (steps: {remaining})"
        )

    def _earlier(self, step: int) -> str:
        earlier = [other for other in self.steps() if other < step]
        if not earlier:
            return "; there is no earlier checkpoint"
        return f"; an earlier checkpoint is at step {earlier[-1]} (remove or rename {self._directory / str(step)} to use it)"

    def _set_aside(self, after: int) -> None:
        """Renames the damaged checkpoints behind a step, so that the run can save these steps again."""
        if jax.process_index() == 0:
            for step in [step for step in self.steps() if step > after]:
                target = self._directory / f"{step}.damaged"
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("lmx: damaged checkpoints set aside")
        self._manager.close()
        self._open()


@dataclasses.dataclass
class _Preservation(checkpoint_managers.PreservationPolicy):
    """The newest, the periodic and the best checkpoint stay."""

    retention: Retention
    best_step: int | None = None

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        newest = {info.step for info in checkpoints[-self.retention.last :]}
        every = self.retention.every
        return [
            info.step in newest or info.step == self.best_step or (every is not None and info.step % every == 0)
            for info in checkpoints
        ]


def _gather(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON value of every process, in the order of their indices."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(text))))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
