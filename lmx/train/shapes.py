"""A run whose batches change their shape: one TrainSpec and one compiled step for each shape, the state shared."""

import dataclasses
from collections.abc import Callable

import jax

from lmx.core.types import PyTree
from lmx.data.ramp import Phase, Ramp
from lmx.train.spec import TrainSpec
from lmx.train.step import build_step


def resized(spec: TrainSpec, phase: Phase) -> TrainSpec:
    """The spec with batches of a phase's shape; the leading two axes of every array are [B, T].

    Raises:
      ValueError: the mesh can't hold the batch.
    """

    def leaf(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((phase.batch_size, phase.length, *array.shape[2:]), array.dtype)

    return dataclasses.replace(spec, batch_spec=jax.tree.map(leaf, spec.batch_spec), microbatches=phase.microbatches)


class Shapes:
    """The steps of a run, by number."""

    def __init__(self, spec: TrainSpec, ramp: Ramp | None) -> None:
        """Makes the spec of every phase, so that a batch that the mesh can't hold is refused before the first step.

        Args:
          spec: of the run; its own batches are those of a run without ramp.
          ramp: the phases, None = one shape all along.
        """
        self._ramp = ramp
        self._specs = [spec] if ramp is None else [resized(spec, phase) for phase in ramp.phases]
        self._compiled: dict[tuple, Callable] = {}

    def spec(self, step: int) -> TrainSpec:
        """Of the batch that follows `step` batches."""
        return self._specs[0 if self._ramp is None else self._ramp.index(step)]

    def step_fn(self, step: int) -> Callable:
        """The compiled step of the batch that follows `step` batches; phases of one shape share it."""
        spec = self.spec(step)
        key = (_shape(spec.batch_spec), spec.microbatches)
        if key not in self._compiled:
            self._compiled[key] = build_step(spec)
        return self._compiled[key]

    def changes(self, step: int) -> bool:
        """Whether the batch that follows `step` batches is the first of its phase, the run's first aside."""
        return self._ramp is not None and step > 0 and step in self._ramp.first_steps

    def length(self, step: int) -> int:
        """T of the batch that follows `step` batches."""
        return _shape(self.spec(step).batch_spec)[1]

    def describe(self, step: int) -> str:
        """The shapes from a step on, "4 x 8 tokens, 8 x 16 from step 31"."""
        rows, length = _shape(self.spec(step).batch_spec)
        later = []
        if self._ramp is not None:
            for phase, first in zip(self._ramp.phases, self._ramp.first_steps, strict=True):
                if first > step:
                    later.append(f"{phase.batch_size} x {phase.length} from step {first + 1}")
        return ", ".join([f"{rows} x {length} tokens", *later])


def _shape(batch_spec: PyTree) -> tuple[int, int]:
    rows, length = jax.tree_util.tree_leaves(batch_spec)[0].shape[:2]
    return rows, length
