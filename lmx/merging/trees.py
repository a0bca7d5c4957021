"""Merges of parameter trees in memory: pure functions, float32 arithmetic, each parameter in the dtype of the first model.

Task vectors are taken from `base`, the model that all were trained from. Trees are parameters of lmx, in which
"blocks/<place>/..." are stacked layers; every other parameter belongs to the group of its first name.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Params, PyTree
from lmx.merging.linear import check_same_shapes, mean
from lmx.merging.methods import Block, By, Inputs, Liti, Method, Weights
from lmx.merging.parts import Part, cut, leading_axes
from lmx.merging.task_vectors import Arithmetic, Dare, Slerp, Ties


def merge(method: Method, models: Sequence[Params], base: Params | None = None) -> Params:
    """The models merged by a method.

    Args:
      method: how.
      models: of the same shapes, in the order that the method's weights have.
      base: where task vectors are taken from; only methods of task vectors have one.

    Raises:
      ValueError: no model, models of different shapes, a base missing or of no use, or what the method refuses.
    """
    if not models:
        raise ValueError("there is no model to merge")
    if (base is not None) != method.needs_base:
        asks = "merges task vectors: give the base that the models" if method.needs_base else "has no use for the base that models"
        raise ValueError(f"{type(method).__name__} {asks} were trained from{'' if method.needs_base else '; leave it out'}")
    for other in (*models[1:], *([] if base is None else [base])):
        check_same_shapes(models[0], other)
    inputs = _Trees(models, base)
    parts = cut({leaf: value.shape for leaf, value in inputs.first.items()})
    method.check(len(models), {part.group for part in parts})
    found: dict[str, dict[tuple[int, ...], Array]] = {}
    for part, _, rows in merged(method, inputs, parts):
        found.setdefault(part.leaf, {})[part.index] = rows.astype(inputs.first[part.leaf].dtype)
    leaves = [_assembled(leaf, found.get(leaf, {}), value) for leaf, value in inputs.first.items()]
    return jax.tree.unflatten(jax.tree.structure(models[0]), leaves)


def merged(method: Method, inputs: Inputs, parts: Sequence[Part]) -> Iterator[tuple[Part, int, Array]]:
    """Each part once, block of rows by block of rows: (part, first row, [rows, ...] float32).

    A method's statistics are taken of those parts only that share them, just before these are combined.
    """
    shared: dict[str, list[Part]] = {}
    for part in parts:
        shared.setdefault({"tensor": part.name, "layer": part.group, "tree": ""}[method.by], []).append(part)
    for unit in shared.values():
        plan = method.prepare(inputs, unit)
        for part in unit:
            for block in inputs.blocks(part):
                yield part, block.start, method.combine(plan, part, block)


class _Trees:
    def __init__(self, models: Sequence[Params], base: Params | None) -> None:
        self._models = [_by_path(model) for model in models]
        self._base = None if base is None else _by_path(base)
        self.first = self._models[0]

    @property
    def count(self) -> int:
        return len(self._models)

    def blocks(self, part: Part) -> Iterator[Block]:
        def rows(leaves: dict[str, Array]) -> Array:
            leaf = leaves[part.leaf]
            return jnp.asarray(
                _at(leaf, part.index) if part.index and isinstance(leaf, jax.Array) else leaf[part.index], jnp.float32
            )

        yield Block(0, None if self._base is None else rows(self._base), [rows(leaves) for leaves in self._models])


@jax.jit
def _at(leaf: Array, index: tuple[int, ...]) -> Array:
    """One layer of a parameter; the index is traced, so that all layers share one program."""
    return leaf[index]


def _by_path(tree: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _assembled(leaf: str, parts: dict[tuple[int, ...], Array], like: Array) -> Array:
    if not leading_axes(leaf):
        return parts[()]
    stacked = jnp.stack([parts[index] for index in sorted(parts)]) if parts else jnp.zeros((0,), like.dtype)
    return stacked.reshape(like.shape)


def slerp(
    base: Params,
    models: Sequence[Params],
    t: float | None = None,
    *,
    by: By = "layer",
    antiparallel: Literal["raise", "lerp"] = "raise",
) -> Params:
    """base + spherical interpolation of the models' task vectors; `t` towards the second of two, else 1 / M each. See `Slerp`."""
    weights = Weights() if t is None else Weights(default=(1 - t, t))
    return merge(Slerp(weights=weights, by=by, antiparallel=antiparallel), models, base)


def liti(base: Params, params: Params, eta: float) -> Params:
    """(1 - eta) * base + eta * params; exactly `base` at 0 and `params` at 1. See `Liti`."""
    return merge(Liti(eta=eta), [params], base)


def warp(base: Params, models: Sequence[Params], eta: float = 0.3, *, by: By = "layer") -> Params:
    """What the next iteration of WARP starts from: `liti(base, slerp(base, models), eta)`, stages 2 and 3 of an iteration.

    Stage 1 is `lmx.merging.anchor_step`, taken along each run. The last front is `liti(sft, slerp(last_init, models), eta)`.

    Args:
      base: what this iteration's policies started from.
      models: the policies, in a fixed order.
      eta: of the interpolation towards `base`; 1 = SLERP alone.
      by: what has an angle of its own.

    Reference: Rame et al. (2024), arXiv:2406.16768, algorithm 1.
    """
    return merge(Slerp(eta=eta, by=by), models, base)


def warm(reward_models: Iterable[Params]) -> Params:
    """The uniform mean of reward models fine-tuned from one start, read one at a time (Rame et al. 2024, arXiv:2401.12187)."""
    return mean(reward_models)


def task_arithmetic(base: Params, models: Sequence[Params], scales: Sequence[float] | None = None) -> Params:
    """base + sum of scale * task vector; None = 1 / M each, which is the mean of the models. See `Arithmetic`."""
    return merge(Arithmetic(weights=Weights(default=None if scales is None else tuple(scales))), models, base)


def ties(base: Params, models: Sequence[Params], *, density: float = 0.2, scale: float = 1.0, by: By = "tree") -> Params:
    """Trimmed task vectors, merged where they agree with the elected sign. See `Ties`."""
    return merge(Ties(density=density, scale=scale, by=by), models, base)


def dare(
    base: Params,
    models: Sequence[Params],
    *,
    density: float,
    seed: int,
    rescale: bool = True,
    scales: Sequence[float] | None = None,
) -> Params:
    """Task arithmetic on task vectors of which a random share is kept. See `Dare`."""
    weights = Weights(default=None if scales is None else tuple(scales))
    return merge(Dare(density=density, rescale=rescale, weights=weights, seed=seed), models, base)
