"""How foreign tensors and lmx parameters correspond: a family's table of names, and the rules that it expands to."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmx.checkpoint import record
from lmx.model.config import DecoderConfig
from lmx.model.decoder import build_model

Shape = tuple[int, ...]


class Place(NamedTuple):
    """A part of the parameters that one foreign tensor fills.

    Attributes:
      leaf: path of the parameter, "blocks/0/attention/q/kernel".
      repeat: index on its leading axis of stacked layers; None = the parameter is not stacked.
      expert: index on the next axis, of experts; None = it has none.
    """

    leaf: str
    repeat: int | None = None
    expert: int | None = None

    @property
    def indices(self) -> Shape:
        """The leading indices that pick this part out of the whole parameter."""
        return tuple(index for index in (self.repeat, self.expert) if index is not None)

    def __str__(self) -> str:
        return self.leaf + "".join(f"[{index}]" for index in self.indices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the numbers of one foreign tensor lie in an lmx parameter; functions of numpy arrays, views wherever that is possible.

    Attributes:
      to_lmx: (foreign tensor, shape of the place) -> array of that shape.
      to_foreign: array of the place -> foreign tensor; the inverse.
      by_rows: rows [a:b] of the one are rows [a:b] of the other, so that a large table can be converted a few rows at a time.
    """

    to_lmx: Callable[[np.ndarray, Shape], np.ndarray]
    to_foreign: Callable[[np.ndarray], np.ndarray]
    by_rows: bool = False


def _linear(inputs: int) -> Layout:
    """Kernel [*in, *out], `inputs` axes of it in, as PyTorch's [out, in]."""

    def to_foreign(kernel: np.ndarray) -> np.ndarray:
        return kernel.reshape(math.prod(kernel.shape[:inputs]), math.prod(kernel.shape[inputs:])).T

    return Layout(to_lmx=lambda weight, shape: weight.T.reshape(shape), to_foreign=to_foreign)


IDENTITY = Layout(to_lmx=lambda x, shape: x.reshape(shape), to_foreign=lambda x: x, by_rows=True)
"""Tables [V, D] and gains [D]."""
LINEAR = _linear(1)
"""Kernels [D, F] or [D, N, H] as [F, D] or [N * H, D]."""
LINEAR_FROM_HEADS = _linear(2)
"""Kernel [N, H, D] of the attention's output as [D, N * H]."""
FLAT = Layout(to_lmx=lambda x, shape: x.reshape(shape), to_foreign=lambda x: x.reshape(-1))
"""Biases [N, H] as [N * H]."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a family's table.

    Attributes:
      leaf: path of the parameter; within a layer, the path below "blocks/<place in the pattern>/".
      name: the foreign name, with {layer} (depth, from 0) and {expert} filled in.
      layout: how the numbers lie.
    """

    leaf: str
    name: str
    layout: Layout = IDENTITY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One foreign tensor and the part of the parameters that it is.

    Attributes:
      name: foreign name.
      place: where in the parameters.
      shape: of the place, without its leading indices.
      layout: how the numbers lie.
    """

    name: str
    place: Place
    shape: Shape
    layout: Layout

    def to_lmx(self, tensor: np.ndarray) -> np.ndarray:
        """The foreign tensor as the place's array."""
        return self.layout.to_lmx(tensor, self.shape)

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """The place's array as the foreign tensor."""
        return self.layout.to_foreign(array)

    def foreign_shape(self) -> Shape:
        """Shape that the foreign tensor must have; allocates nothing."""
        return self.to_foreign(np.broadcast_to(np.zeros((), np.float32), self.shape)).shape


def parameter_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Path -> shape of every parameter of a model."""
    described = record.describe(build_model(config).abstract_params())
    return {path: tuple(entry["shape"]) for path, entry in described.items()}


def expand(config: DecoderConfig, table: Sequence[Entry], family: str) -> tuple[Rule, ...]:
    """The rules of a model: one for every tensor that a checkpoint of this family and config has.

    Args:
      config: the model.
      table: the family's names.
      family: its name, for the message.

    Raises:
      ValueError: the model has a parameter that the family has no name for.
    """
    entries = {entry.leaf: entry for entry in table}
    rules: list[Rule] = []
    for leaf, shape in parameter_shapes(config).items():
        parts = leaf.split("/", 2)
        within = parts[2] if parts[0] == "blocks" else leaf
        if within not in entries:
            raise ValueError(f"the {family} format has no tensor for the parameter {leaf}; this model cannot be written in it")
        rules += _rules_of(entries[within], leaf, shape, len(config.layer_pattern))
    return tuple(rules)


def _rules_of(entry: Entry, leaf: str, shape: Shape, pattern: int) -> list[Rule]:
    if not leaf.startswith("blocks/"):
        return [Rule(name=entry.name, place=Place(leaf), shape=shape, layout=entry.layout)]
    layers = {repeat: repeat * pattern + int(leaf.split("/")[1]) for repeat in range(shape[0])}
    if "{expert}" not in entry.name:
        return [
            Rule(name=entry.name.format(layer=layer), place=Place(leaf, repeat), shape=shape[1:], layout=entry.layout)
            for repeat, layer in layers.items()
        ]
    return [
        Rule(
            name=entry.name.format(layer=layer, expert=expert),
            place=Place(leaf, repeat, expert),
            shape=shape[2:],
            layout=entry.layout,
        )
        for repeat, layer in layers.items()
        for expert in range(shape[1])
    ]


def by_place(rules: Sequence[Rule]) -> Mapping[Place, Rule]:
    """The rules by what they fill."""
    return {rule.place: rule for rule in rules}
