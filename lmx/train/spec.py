"""TrainSpec: all that a training step is made of. The loop trains it, `show` counts it, a planner lowers it from shapes alone."""

import dataclasses
from collections.abc import Mapping

import jax
import optax
from jax.sharding import Mesh

from lmx.core.types import Objective, Precision, PyTree
from lmx.model.decoder import Model
from lmx.sharding import place
from lmx.sharding.rules import Rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything a step needs, with no array in it.

    Attributes:
      model: the trained model (`init`, `apply`, logical axes of its parameters), built for `mesh` and `rules`.
      objective: (params, frozen, batch, key) -> (terms, metrics).
      optimizer: any optax transformation; it works in float32 whatever the parameters' dtype.
      batch_spec: pytree of jax.ShapeDtypeStruct, the *global* batch; leading axis B everywhere.
      frozen_models: models whose parameters the objective reads but the step does not change, by name ("teacher", "reference").
      mesh: device mesh with axes "data", "fsdp", "tensor".
      rules: logical axis -> mesh axes.
      precision: dtypes of parameters and activations.
      microbatches: gradient accumulation; must divide B.
      clip_norm: global-norm clip of the gradient, None = off.
      drop_norm: a step whose gradient has this global norm or more, before clipping, is skipped and counted like one that is not
        finite, but never stops the run; None = off.
    """

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_spec: PyTree
    mesh: Mesh
    rules: Rules
    precision: Precision = Precision()
    frozen_models: Mapping[str, Model] = dataclasses.field(default_factory=dict)
    microbatches: int = 1
    clip_norm: float | None = 1.0
    drop_norm: float | None = None

    def __post_init__(self) -> None:
        rows = {leaf.shape[0] for leaf in jax.tree.leaves(self.batch_spec)}
        if len(rows) != 1:
            raise ValueError(f"the arrays of batch_spec must share their leading axis, but have {sorted(rows)} rows")
        (batch_size,) = rows
        shards = place.extent(self.mesh, self.rules.mesh_axes("batch"))
        if self.microbatches < 1 or batch_size % (self.microbatches * shards):
            raise ValueError(
                f"a batch of {batch_size} rows cannot be split into {self.microbatches} microbatches over {shards} devices along "
                f"mesh axes {self.rules.mesh_axes('batch')}; make it a multiple of {max(self.microbatches, 1) * shards}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be positive, or None for no clipping")
        if self.drop_norm is not None and self.drop_norm <= 0:
            raise ValueError(f"drop_norm={self.drop_norm} must be positive, or None to drop no step")
