"""Masks over parameters, by path: which are decayed, trained or frozen."""

import re
from collections.abc import Callable

import jax

from lmx.core.types import Params, PyTree

# Norm gains and biases of lmx's decoders, by the last name of their path. Rank can't tell: scanned layers add an axis to vectors.
VECTORS = r"(^|/)(gain|scale|[a-z_]*bias)$"


def path_mask(pattern: str, *, matched: bool = True) -> Callable[[Params], PyTree]:
    """A function from parameters to a tree of bools, for `optax.masked` and the `mask` arguments of optax.

    Args:
      pattern: regular expression, searched in the leaf's path ("blocks/0/attention/q/kernel").
      matched: value where the pattern is found; the other leaves get `not matched`.

    Returns:
      params -> tree of bool, of the same structure.
    """
    expression = re.compile(pattern)

    def mask(params: Params) -> PyTree:
        def leaf_mask(path: tuple, leaf: object) -> bool:
            del leaf
            found = expression.search(jax.tree_util.keystr(path, simple=True, separator="/")) is not None
            return found == matched

        return jax.tree_util.tree_map_with_path(leaf_mask, params)

    return mask
