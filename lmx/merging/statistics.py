"""What a merge must know of whole task vectors before it can combine them, gathered block by block with the same bits as at once.

A sum over a block of rows would depend on where the blocks end. So sums here go over each row alone, in a fixed tree of additions
that no compiler reorders, then over the column of row sums, and the sums of parts are added exactly.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array

_BINS = 1 << 16


class Products:
    """Inner products of vectors that come part by part, and of each part by blocks of rows.

    Attributes:
      gram: [M, M] float64, the products of the parts that are complete.
    """

    def __init__(self, count: int) -> None:
        """Of `count` vectors, M."""
        self._rows: list[list[list[Array]]] = [[[] for _ in range(count)] for _ in range(count)]
        self._sums: list[list[list[float]]] = [[[] for _ in range(count)] for _ in range(count)]

    def add(self, blocks: Sequence[Array]) -> None:
        """Takes the next rows of the current part, [rows, ...] float32 of each vector."""
        for i, first in enumerate(blocks):
            for j in range(i + 1):
                self._rows[i][j].append(_row_sums(first * blocks[j]))

    def end_part(self) -> None:
        """Ends the current part."""
        for i, row in enumerate(self._rows):
            for j in range(i + 1):
                self._sums[i][j].append(float(_fold(jnp.concatenate(row[j])[None])[0]))
                row[j].clear()

    @property
    def gram(self) -> np.ndarray:
        """[M, M] float64."""
        count = len(self._sums)
        return np.array([[math.fsum(self._sums[max(i, j)][min(i, j)]) for j in range(count)] for i in range(count)])


def _row_sums(products: Array) -> Array:
    """[rows] sums of [rows, ...]."""
    return _fold(products.reshape(products.shape[0] if products.ndim else 1, -1))


@jax.jit
def _fold(x: Array) -> Array:
    """[rows] sums of [rows, n], adding halves until one column is left: additions only, so that no compiler fuses them away."""
    if not x.shape[1]:
        return jnp.zeros(x.shape[0], x.dtype)
    while x.shape[1] > 1:
        half, odd = divmod(x.shape[1], 2)
        last = x[:, 2 * half :]
        x = x[:, :half] + x[:, half : 2 * half]
        if odd:
            x = jnp.concatenate([x[:, :1] + last, x[:, 1:]], axis=1)
    return x[:, 0]


class LargestMagnitudes:
    """The k-th largest magnitude among numbers that come block by block, exactly, in two passes and 256 KiB.

    The bits of a magnitude, read as an integer, are in its order: the first pass counts the upper 16 bits, the second the lower
    ones of those numbers that share the upper ones with the k-th.
    """

    def __init__(self, keep: int) -> None:
        """The `keep`-th largest, from 1."""
        self._keep = keep
        self._counts = np.zeros(_BINS, np.int64)
        self._upper: int | None = None

    def add(self, block: Array) -> None:
        """Takes float32 numbers of any shape."""
        self._counts += np.asarray(_count(block, -1 if self._upper is None else self._upper), np.int64)

    def end_pass(self) -> float:
        """Ends a pass over all numbers.

        Returns:
          The magnitude after the second pass; after the first, a bound from below.
        """
        above = np.cumsum(self._counts[::-1])
        found = _BINS - 1 - int(np.searchsorted(above, self._keep))
        if self._upper is None:
            self._keep -= int(above[-1] - np.cumsum(self._counts)[found])
            self._counts[:] = 0
            self._upper = found
            return _magnitude(found << 16)
        return _magnitude(self._upper << 16 | found)


@jax.jit
def _count(block: Array, upper: int) -> Array:
    """[65536] how often each upper half occurs, or with `upper` >= 0 each lower half below that upper half."""
    bits = jax.lax.bitcast_convert_type(jnp.abs(block), jnp.uint32).reshape(-1)
    high, low = (bits >> 16).astype(jnp.int32), (bits & 0xFFFF).astype(jnp.int32)
    bins = jnp.where(upper < 0, high, jnp.where(high == upper, low, _BINS))
    return jnp.zeros(_BINS, jnp.int32).at[bins].add(1, mode="drop")


def _magnitude(bits: int) -> float:
    return float(np.array(bits, np.uint32).view(np.float32))


def kept_count(density: float, size: int) -> int:
    """How many of `size` numbers a share `density` is: rounded down, but one at least."""
    return max(1, int(density * size * (1 + 1e-12)))


def slerp_coefficients(gram: np.ndarray, shares: Sequence[float], antiparallel: str, where: str) -> np.ndarray:
    """The weights of vectors in their spherical interpolation: the result is their weighted sum.

    The vectors are taken in their order: what has come of the first ones is interpolated with the next.

    Args:
      gram: [M, M] float64 inner products.
      shares: t of each but the first, in [0, 1]: how far it goes towards that vector.
      antiparallel: "raise", or "lerp" for a straight line where two directions are opposite.
      where: of what the vectors are, for the message.

    Returns:
      [M] float64.

    Raises:
      ValueError: two directions are opposite, so that there is no shortest arc.
    """
    found = np.zeros(len(gram))
    found[0] = 1.0
    for new, t in enumerate(shares, start=1):
        one = np.eye(len(gram))[new]
        norms = [math.sqrt(max(0.0, float(v @ gram @ v))) for v in (found, one)]
        first, second = 1 - t, t
        if min(norms) >= 1e-12:
            cosine = min(1.0, max(-1.0, float(found @ gram @ one) / (norms[0] * norms[1])))
            sine = math.sqrt((1 - cosine) * (1 + cosine))
            if cosine < -1 + 1e-6 and antiparallel == "raise":
                raise ValueError(
                    f"the task vectors of models {new - 1} and {new} point in opposite directions in {where} (cosine {cosine:.7f}) "
                    "and no arc between them is the shortest; merge them otherwise, or ask for a straight line there"
                )
            if cosine >= -1 + 1e-6 and sine >= 1e-6:
                angle = math.acos(cosine)
                first, second = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        found = first * found + second * one
    return found
