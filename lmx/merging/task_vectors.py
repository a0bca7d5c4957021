"""Merges of task vectors, what training added to a common base: task arithmetic, SLERP, TIES and DARE, as methods."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Collection, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array
from lmx.merging.methods import Block, By, Inputs, Weights, WithoutStatistics, added
from lmx.merging.parts import Part
from lmx.merging.statistics import LargestMagnitudes, Products, kept_count, slerp_coefficients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic(WithoutStatistics):
    """Task arithmetic: base + sum of lambda_m * task vector m.

    Attributes:
      weights: the lambdas, of any sum and sign; None = 1 / M each, the mean.

    Reference: Ilharco et al. (2022), arXiv:2212.04089.
    """

    weights: Weights = Weights()
    needs_base = True

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        self.weights.check(count, groups)

    def combine(self, plan: None, part: Part, block: Block) -> Array:
        """As `Method.combine`."""
        return added(block, self.weights.of(part.group) or _alike(block))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slerp:
    """Spherical interpolation of task vectors, each layer with its own angle; of more than two, in the order of the models.

    The vector of model m is interpolated with what has come of those before it, with 1 / m for its own share. Embeddings and final
    norm are groups of their own, a tied embedding once. Where two vectors are parallel, or one is 0, the arc is a straight line.

    Attributes:
      weights: (1 - t, t) for two models, both in [0, 1]; None = 1 / M each.
      eta: the result is base + eta * interpolation: stages 2 and 3 of WARP in one.
      by: what has an angle of its own: a "layer" as in the paper, each "tensor", or the whole "tree".
      antiparallel: "raise" where two vectors point in opposite directions, or "lerp" for a straight line through the base.

    Reference: Rame et al. (2024), WARP, arXiv:2406.16768, stage 2 and appendix B.3.
    """

    weights: Weights = Weights()
    eta: float = 1.0
    by: By = "layer"
    antiparallel: Literal["raise", "lerp"] = "raise"
    needs_base = True

    def __post_init__(self) -> None:
        check_by(self.by)
        if self.antiparallel not in ("raise", "lerp") or not math.isfinite(self.eta):
            raise ValueError(f"antiparallel={self.antiparallel!r} is not 'raise' or 'lerp', or eta={self.eta} not a finite number")

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        given = [values for values in (self.weights.default, *self.weights.groups.values()) if values is not None]
        if given and count != 2:
            raise ValueError(f"spherical interpolation takes weights for two models, not for {count}: more have 1 / M each")
        self.weights.check(count, groups, 1.0)
        for values in given:
            if min(values) < 0:
                raise ValueError(f"the weights {list(values)} of a spherical interpolation must lie in [0, 1]")

    def prepare(self, inputs: Inputs, parts: Sequence[Part]) -> np.ndarray:
        """As `Method.prepare`: [M, M] float64, the inner products of the task vectors."""
        products = Products(inputs.count)
        for part in parts:
            for block in inputs.blocks(part):
                products.add(block.task_vectors())
            products.end_part()
        return products.gram

    def combine(self, plan: np.ndarray, part: Part, block: Block) -> Array:
        """As `Method.combine`."""
        weights = self.weights.of(part.group)
        shares = [1 / m for m in range(2, len(block.models) + 1)] if weights is None else [weights[1]]
        where = {"tensor": part.name, "layer": f"layer {part.group}" if part.group.isdigit() else part.group, "tree": "the model"}
        found = self.eta * slerp_coefficients(plan, shares, self.antiparallel, where[self.by])
        return added(block, [float(c) for c in found])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """Trim, elect signs, merge: base + scale * mean of the trimmed task vectors that agree with the sign of their sum.

    Attributes:
      density: share of each task vector's numbers that is kept, those of largest magnitude, in (0, 1].
      scale: lambda of the paper.
      weights: >= 0, of the sum that elects the sign and of the mean, relative to each other; None = all alike, the paper.
      by: of what the share is taken: the whole "tree" as in the paper, a "layer", or each "tensor".

    Reference: Yadav et al. (2023), arXiv:2306.01708, algorithm 1.
    """

    density: float = 0.2
    scale: float = 1.0
    weights: Weights = Weights()
    by: By = "tree"
    needs_base = True

    def __post_init__(self) -> None:
        check_by(self.by)
        check_density(self.density)

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        _check_electors(self.weights, count, groups)

    def prepare(self, inputs: Inputs, parts: Sequence[Part]) -> list[float]:
        """As `Method.prepare`: the smallest magnitude that is kept of each task vector."""
        if self.density == 1:
            return [0.0] * inputs.count
        keep = kept_count(self.density, sum(part.size for part in parts))
        largest = [LargestMagnitudes(keep) for _ in range(inputs.count)]
        for _ in range(2):
            for part in parts:
                for block in inputs.blocks(part):
                    for found, vector in zip(largest, block.task_vectors(), strict=True):
                        found.add(vector)
            thresholds = [found.end_pass() for found in largest]
        return thresholds

    def combine(self, plan: list[float], part: Part, block: Block) -> Array:
        """As `Method.combine`."""
        trimmed = [_trimmed(vector, threshold) for vector, threshold in zip(block.task_vectors(), plan, strict=True)]
        weights = self.weights.of(part.group) or (1.0,) * len(trimmed)
        return added(block, [self.scale], [agreeing_mean(trimmed, weights)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dare:
    """Drop at random and rescale: every number of a task vector is kept with probability `density`, and divided by it.

    Attributes:
      density: 1 - the drop rate of the paper, in (0, 1].
      rescale: divide by the density, so that the expectation is the task vector.
      weights: with "sum" the lambdas of task arithmetic, None = 1 / M each; with "elect" as in `Ties`.
      combine_by: "sum" for task arithmetic on what is left, "elect" for the sign election and mean of TIES.
      scale: factor on the merged task vector.
      seed: of the masks; they depend on seed, model, layer, parameter and row, not on how layers are stacked or read.

    Reference: Yu et al. (2023), arXiv:2311.03099.
    """

    density: float
    rescale: bool = True
    weights: Weights = Weights()
    combine_by: Literal["sum", "elect"] = "sum"
    scale: float = 1.0
    seed: int = 0
    needs_base = True

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.combine_by not in ("sum", "elect"):
            raise ValueError(f"combine_by={self.combine_by!r} is not 'sum' or 'elect'")

    @property
    def by(self) -> By:
        """As `Method.by`."""
        return "tensor"

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        if self.combine_by == "elect":
            _check_electors(self.weights, count, groups)
        self.weights.check(count, groups)

    def prepare(self, inputs: Inputs, parts: Sequence[Part]) -> Array:
        """As `Method.prepare`: the key of the only part."""
        (part,) = parts
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(part.name.encode()))

    def combine(self, plan: Array, part: Part, block: Block) -> Array:
        """As `Method.combine`."""
        left = [
            self._dropped(vector, jax.random.fold_in(plan, model), block.start) for model, vector in enumerate(block.task_vectors())
        ]
        if self.combine_by == "elect":
            return added(block, [self.scale], [agreeing_mean(left, self.weights.of(part.group) or (1.0,) * len(left))])
        lambdas = self.weights.of(part.group) or _alike(block)
        return added(block, [self.scale * scale for scale in lambdas], left)

    def _dropped(self, vector: Array, key: Array, start: int) -> Array:
        if self.density == 1:
            return vector
        left = _kept(key, start, jnp.float32(self.density), vector if vector.ndim else vector[None]).reshape(vector.shape)
        return left / jnp.float32(self.density) if self.rescale else left


@jax.jit
def _kept(key: Array, start: int, density: Array, rows: Array) -> Array:
    """[rows, ...] with numbers dropped, each row by a key of its own."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(rows.shape[0]))
    return jax.vmap(lambda key, row: jnp.where(jax.random.uniform(key, row.shape) < density, row, 0.0))(keys, rows)


@jax.jit
def _trimmed(vector: Array, threshold: float) -> Array:
    return jnp.where(jnp.abs(vector) >= threshold, vector, 0.0)


def agreeing_mean(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted mean of those of several numbers that have the sign of their weighted sum, 0 where that sum is 0.

    Args:
      vectors: [...] float32 each.
      weights: >= 0, one a vector.
    """
    # Products are taken here and sums there: in one program a compiler may round the two at once, for some shapes and not others.
    weighted = [vector if w == 1 else vector * jnp.float32(w) for vector, w in zip(vectors, weights, strict=True)]
    return _agreeing_mean(list(vectors), weighted, [jnp.float32(w) for w in weights])


@jax.jit
def _agreeing_mean(vectors: list[Array], weighted: list[Array], weights: list[Array]) -> Array:
    elected = jnp.sign(functools.reduce(jnp.add, weighted))
    agrees = [(jnp.sign(vector) == elected) & (elected != 0) for vector in vectors]
    total = functools.reduce(jnp.add, [jnp.where(a, vector, 0.0) for a, vector in zip(agrees, weighted, strict=True)])
    share = functools.reduce(jnp.add, [jnp.where(a, w, 0.0) for a, w in zip(agrees, weights, strict=True)])
    return total / jnp.where(share > 0, share, 1.0)


def check_by(by: str) -> None:
    """Raises ValueError for what statistics are not taken of."""
    if by not in ("tensor", "layer", "tree"):
        raise ValueError(f"by={by!r} is not 'tensor', 'layer' or 'tree'")


def check_density(density: float) -> None:
    """Raises ValueError for a share outside (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must lie in (0, 1]: it is the share that is kept")


def _alike(block: Block) -> tuple[float, ...]:
    return (1 / len(block.models),) * len(block.models)


def _check_electors(weights: Weights, count: int, groups: Collection[str]) -> None:
    weights.check(count, groups)
    for values in (weights.default or (), *weights.groups.values()):
        if values and (min(values) < 0 or sum(values) <= 0):
            raise ValueError(f"the weights {list(values)} that elect signs must not be negative, and not all 0")
