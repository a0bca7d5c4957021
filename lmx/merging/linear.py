"""Weighted means of parameter trees, taken one tree at a time, so that however many there are only two are in memory."""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Params, PyTree


class RunningMean:
    """The weighted mean of the trees given so far, in float32.

    The mean moves by its share of each difference, so that of equal trees it is that tree, to the last bit.
    """

    def __init__(self) -> None:
        """No tree yet."""
        self._mean: PyTree = None
        self._dtypes: PyTree = None
        self._weight = 0.0

    def add(self, params: Params, weight: float = 1.0) -> None:
        """Takes one more tree.

        Args:
          params: arrays, numpy or jax; all trees must agree in structure and shapes.
          weight: > 0, relative to the others.

        Raises:
          ValueError: the weight is not positive, or the tree is another model's; the message names the first parameter.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight={weight} must be a positive number; leave the model out instead")
        self._weight += weight
        if self._mean is None:
            self._dtypes = jax.tree.map(lambda x: x.dtype, params)
            self._mean = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
            return
        check_same_shapes(self._mean, params)
        share = weight / self._weight
        self._mean = jax.tree.map(lambda m, x: m + (jnp.asarray(x, jnp.float32) - m) * share, self._mean, params)

    def value(self) -> Params:
        """The mean, each parameter in the dtype it had in the first tree.

        Raises:
          ValueError: no tree was given.
        """
        if self._mean is None:
            raise ValueError("the mean of no parameters: give at least one model")
        return jax.tree.map(lambda x, dtype: x.astype(dtype), self._mean, self._dtypes)


def mean(trees: Iterable[Params], weights: Sequence[float] | None = None) -> Params:
    """Weighted mean of parameter trees, accumulated in float32.

    Args:
      trees: read one at a time: a generator that restores each from disk needs memory for the mean and one tree.
      weights: one a tree, relative to each other; None = all alike.

    Returns:
      The mean, in the first tree's dtypes.

    Raises:
      ValueError: no tree, another number of weights than trees, a weight that is not positive, or trees of different models.

    Reference: Polyak and Juditsky (1992), SIAM J. Control Optim. 30:838-855; Llama 3.1 (arXiv:2407.21783, section 3.4.3).
    """
    found, count = RunningMean(), 0
    for tree in trees:
        if weights is not None and count >= len(weights):
            raise ValueError(f"there are more models than the {len(weights)} weights; give one weight a model")
        found.add(tree, 1.0 if weights is None else weights[count])
        count += 1
    if weights is not None and count != len(weights):
        raise ValueError(f"{len(weights)} weights for {count} models; give one weight a model")
    return found.value()


def check_same_shapes(expected: PyTree, given: PyTree) -> None:
    """Raises a ValueError that names the first parameter in which two trees differ."""
    shapes = [_shapes(expected), _shapes(given)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        first, second = (known.get(name, "missing") for known in shapes)
        if first != second:
            raise ValueError(f"the models to average differ: {name} is {first} in the first and {second} in another")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves: list[tuple[tuple, Array]] = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
