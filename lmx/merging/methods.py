"""Ways to merge models, as configs: what each must know beforehand, and what it makes of the same rows of all models.

`lmx.merging.trees` runs them on parameters in memory, `lmx.convert.merge` on checkpoints; both give the same bits.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax.numpy as jnp

from lmx.core.types import Array
from lmx.merging.parts import Part

By = Literal["tensor", "layer", "tree"]


class Block(NamedTuple):
    """The same rows of a part in all models.

    Attributes:
      start: the first row.
      base: [rows, ...] float32 of the model that all were trained from; None = the method needs none.
      models: [rows, ...] float32 of each model.
    """

    start: int
    base: Array | None
    models: Sequence[Array]

    def task_vectors(self) -> list[Array]:
        """What training added to the base in each model."""
        assert self.base is not None, "the method has needs_base"
        return [model - self.base for model in self.models]


class Inputs(Protocol):
    """The models to merge, readable as often as a method needs."""

    @property
    def count(self) -> int:
        """Number of models, the base not counted."""

    def blocks(self, part: Part) -> Iterator[Block]:
        """A part of all models, block of rows by block of rows."""


class Method(Protocol):
    """A way to merge.

    Attributes:
      needs_base: whether task vectors are merged, and so the model that all were trained from is needed.
    """

    needs_base: bool

    @property
    def by(self) -> By:
        """Of what the statistics are taken: each tensor, all tensors of a layer, or the whole model."""

    def check(self, count: int, groups: Collection[str]) -> None:
        """Raises ValueError if `count` models with these groups of parts cannot be merged so."""

    def prepare(self, inputs: Inputs, parts: Sequence[Part]) -> Any:
        """What `combine` must know of all parts between which the statistics are shared."""

    def combine(self, plan: Any, part: Part, block: Block) -> Array:
        """[rows, ...] float32, the merged rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Numbers for each model, for all parts or by groups.

    Attributes:
      default: one a model; None = the method's own.
      groups: layer number, or first name of a path ("embed", "final_norm", "head") -> one a model, instead of the default.
    """

    default: tuple[float, ...] | None = None
    groups: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for group, values in {"": self.default or (), **self.groups}.items():
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"the weights {list(values)}{_of(group)} must be finite numbers")

    def of(self, group: str) -> tuple[float, ...] | None:
        """Those of a group of parts; None = the method's own."""
        return self.groups.get(group, self.default)

    def check(self, count: int, groups: Collection[str], total: float | None = None) -> None:
        """Raises ValueError for another number of weights than `count`, an unknown group, or another sum than `total`."""
        if unknown := [group for group in self.groups if group not in groups]:
            raise ValueError(f"there are weights for {unknown[0]!r}, but the model has only {_listed(groups)}")
        for group, values in {"": self.default, **self.groups}.items():
            if values is None:
                continue
            if len(values) != count:
                raise ValueError(f"there are {len(values)} weights{_of(group)} for {count} models; give one a model")
            if total is not None and abs(sum(values) - total) > 1e-6:
                raise ValueError(
                    f"the weights {list(values)}{_of(group)} sum to {sum(values):.7g}, but must sum to {total:g}; "
                    "ask for normalize if they are relative to each other"
                )


class WithoutStatistics:
    """A method whose result at a row depends on that row alone."""

    @property
    def by(self) -> By:
        """As `Method.by`."""
        return "tensor"

    def prepare(self, inputs: Inputs, parts: Sequence[Part]) -> None:
        """As `Method.prepare`: nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(WithoutStatistics):
    """The weighted mean: model soups; of reward models it is WARM (Rame et al. 2024, arXiv:2401.12187).

    Attributes:
      weights: >= 0, they sum to 1; None = all alike.
      normalize: divide the weights by their sum instead of refusing another sum than 1.

    Reference: Wortsman et al. (2022), arXiv:2203.05482.
    """

    weights: Weights = Weights()
    normalize: bool = False
    needs_base = False

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        self.weights.check(count, groups, None if self.normalize else 1.0)
        for values in (self.weights.default or (), *self.weights.groups.values()):
            if values and (min(values) < 0 or sum(values) <= 0):
                raise ValueError(f"the weights {list(values)} of a mean must not be negative, and not all 0")

    def combine(self, plan: None, part: Part, block: Block) -> Array:
        """As `Method.combine`; the same additions as `lmx.merging.RunningMean`, so that equal models give that model."""
        found: Array | None = None
        total = 0.0
        for weight, model in zip(self.weights.of(part.group) or [1.0] * len(block.models), block.models, strict=True):
            total += weight
            if weight:
                found = model if found is None else found + (model - found) * (weight / total)
        assert found is not None, "check() has seen the weights"
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema(WithoutStatistics):
    """The exponential mean along a run, oldest checkpoint first, begun with the first.

    Attributes:
      decay: in [0, 1), weight of all that came before.
    """

    decay: float
    needs_base = False

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must lie in [0, 1)")

    def combine(self, plan: None, part: Part, block: Block) -> Array:
        """As `Method.combine`; the same additions as `lmx.merging.exponential_mean`."""
        found = block.models[0]
        for model in block.models[1:]:
            found = found + (model - found) * (1 - self.decay)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Liti(WithoutStatistics):
    """Linear interpolation towards the initialisation: (1 - eta) * base + eta * model.

    Attributes:
      eta: 0 is the base, 1 the model; outside [0, 1] it extrapolates.
      groups: layer number or first name of a path -> eta there instead.

    Reference: Rame et al. (2024), WARP, arXiv:2406.16768, stage 3; Wortsman et al. (2022), arXiv:2109.01903.
    """

    eta: float
    groups: Mapping[str, float] = dataclasses.field(default_factory=dict)
    needs_base = True

    def check(self, count: int, groups: Collection[str]) -> None:
        """As `Method.check`."""
        Weights(default=(self.eta,), groups={group: (eta,) for group, eta in self.groups.items()}).check(1, groups)
        if count != 1:
            raise ValueError(f"interpolation towards the base takes one model, not {count}; merge those first")

    def combine(self, plan: None, part: Part, block: Block) -> Array:
        """As `Method.combine`."""
        return added(block, [self.groups.get(part.group, self.eta)])


def added(block: Block, scales: Sequence[float], vectors: Sequence[Array] | None = None) -> Array:
    """base + sum of scale * task vector, in the order of the models; exactly the base, or a model, where that is what it says.

    Args:
      block: rows of base and models.
      scales: one a model.
      vectors: the task vectors, where something was done to them; None = as they are.
    """
    assert block.base is not None, "the method has needs_base"
    active = [(scale, index) for index, scale in enumerate(scales) if scale]
    if vectors is None and len(active) == 1 and active[0][0] == 1:
        return block.models[active[0][1]]
    vectors = block.task_vectors() if vectors is None else vectors
    moved: Array | None = None
    for scale, index in active:
        term = vectors[index] if scale == 1 else vectors[index] * jnp.float32(scale)
        moved = term if moved is None else moved + term
    return block.base if moved is None else block.base + moved


def _of(group: str) -> str:
    return f" of {'layer ' if group.isdigit() else ''}{group}" if group else ""


def _listed(groups: Collection[str]) -> str:
    layers = [int(group) for group in groups if group.isdigit()]
    names = sorted(group for group in groups if not group.isdigit())
    return ", ".join([*([f"the layers 0 to {max(layers)}"] if layers else []), *names])
