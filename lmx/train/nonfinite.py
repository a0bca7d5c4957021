"""What a run does about a step whose loss or gradient was not finite: stop with all that is known about it, or go on."""

import json
import math

import jax
import optax
from etils import epath

from lmx.core import storage
from lmx.core.errors import RunError
from lmx.core.types import PyTree
from lmx.train.metrics import BadStep


class NonFiniteError(RunError):
    """A loss or gradient was NaN or infinite; it never reached the parameters."""


def optimizer_skips(opt_state: PyTree) -> bool:
    """Whether some part of an optimizer is `optax.apply_if_finite`, which asks for the same as `LoopConfig.nonfinite="skip"`."""
    leaves = jax.tree_util.tree_leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ApplyIfFiniteState))
    return any(isinstance(leaf, optax.ApplyIfFiniteState) for leaf in leaves)


def culprits(bad: BadStep) -> str:
    """The metrics of a step that were not finite, in words."""
    values = [f"{name} {value:.4g}" for name, value in bad.values.items() if not math.isfinite(value)]
    return ", ".join(values) or "gradient"


def stop(name: str, bad: BadStep, *, workdir: epath.Path, good: epath.Path | None) -> NonFiniteError:
    """The error to raise; the position of the step's batch is also written to `nonfinite.json`, whole.

    Args:
      name: of the run.
      bad: the step.
      workdir: of the run.
      good: the last checkpoint before the step.
    """
    notes = workdir / "nonfinite.json"
    if jax.process_index() == 0:
        storage.write_json(notes, {"step": bad.step, "loader": json.loads(bad.loader)})
    position = bad.loader if len(bad.loader) <= 300 else f"{bad.loader[:300]}... (whole in {notes})"
    return NonFiniteError(
        f"{name}: step {bad.step} was not finite ({culprits(bad)}); the parameters are untouched; the batch is at position "
        f"{position}; last good checkpoint: {good or 'none yet'}; lower the learning rate, look at the batch, or set "
        "loop.nonfinite='skip'"
    )
