"""The record that lies beside saved arrays: their paths, shapes, dtypes and digests, readable without reading the arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.errors import RunError
from lmx.core.types import Array, PyTree


class CheckpointError(RunError):
    """A checkpoint cannot be used, or not by this run."""


class MismatchError(CheckpointError):
    """A checkpoint of another architecture."""


class DamagedError(CheckpointError):
    """A checkpoint that was cut short or changed on disk."""


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, keys joined by "/", in the tree's order."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def describe(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Path -> {"shape", "dtype"} of every leaf (arrays or jax.ShapeDtypeStruct), as JSON values."""
    leaves = jax.tree_util.tree_leaves(tree)
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in zip(paths(tree), leaves, strict=True)}


def with_digests(tree: PyTree) -> dict[str, dict[str, Any]]:
    """`describe`, and the digest of each leaf's bits."""
    digests = _digests(jax.tree_util.tree_leaves(tree))
    described = describe(tree)
    return {path: {**entry, "digest": digest} for (path, entry), digest in zip(described.items(), digests, strict=True)}


def check_same(saved: Mapping[str, Mapping[str, Any]], wanted: PyTree, where: str) -> None:
    """Compares a record with the tree that a run wants to restore, before any array is read.

    Raises:
      MismatchError: the message names the first parameter that differs.
    """
    expected = describe(wanted)
    advice = "restore it with the architecture it was made with, or use another directory"
    for path, entry in expected.items():
        if path not in saved:
            raise MismatchError(f"{where} is of another architecture: it has no {path}, which here is {_form(entry)}; {advice}")
        if _form(saved[path]) != _form(entry):
            raise MismatchError(
                f"{where} is of another architecture: {path} is {_form(saved[path])} there and {_form(entry)} here; {advice}"
            )
    for path, extra in saved.items():
        if path not in expected:
            raise MismatchError(f"{where} is of another architecture: its {path}, {_form(extra)}, is unknown here; {advice}")


def check_digests(saved: Mapping[str, Mapping[str, Any]], restored: PyTree, where: str, advice: str = "") -> None:
    """Compares the bits of restored arrays with the digests taken when they were saved.

    Raises:
      DamagedError: the message names the first array that differs.
    """
    digests = _digests(jax.tree_util.tree_leaves(restored))
    for path, digest in zip(paths(restored), digests, strict=True):
        if digest != saved[path]["digest"]:
            raise DamagedError(f"{where} is damaged: the values of {path} are not those that were saved{advice}")


def part_digest(part: np.ndarray, offset: Sequence[int]) -> int:
    """What a part of an array adds to the array's digest: the sum over all parts, modulo 2^32, is the digest of the whole.

    Args:
      part: C-contiguous, any float dtype of at most 4 bytes.
      offset: index of its first element in the whole array, one number an axis.
    """
    unsigned = {1: np.uint8, 2: np.uint16}.get(part.dtype.itemsize, np.uint32)
    sums = part.view(unsigned)  # of the bits, over the axes behind the current one
    total = np.uint32(0)
    with np.errstate(over="ignore"):
        for axis in reversed(range(part.ndim)):
            columns = sums.reshape(-1, sums.shape[-1]).sum(axis=0, dtype=np.uint32)
            index = np.arange(offset[axis], offset[axis] + len(columns), dtype=np.uint32)
            total += np.uint32(_multiplier(axis)) * np.sum(columns * index, dtype=np.uint32)
            sums = sums.sum(axis=-1, dtype=np.uint32)
        return int(total + np.uint32(sums))


def abstract_tree(saved: Mapping[str, Mapping[str, Any]]) -> PyTree:
    """The nested dict of jax.ShapeDtypeStruct that a record describes (for trees of nested dicts, such as parameters)."""
    tree: dict[str, Any] = {}
    for path, entry in saved.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(tuple(entry["shape"]), jnp.dtype(entry["dtype"]))
    return tree


def _form(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{', '.join(str(size) for size in entry['shape'])}]"


def _digests(leaves: Sequence[Array]) -> list[int]:
    """A uint32 for each leaf, the sum of its bits weighted by position.

    Integer sums wrap, so the digest is the same under any sharding, and odd weights let no change of a single element pass.
    """
    groups: dict[Any, list[int]] = {}  # one program a set of devices, as jax has it
    for index, leaf in enumerate(leaves):
        devices = frozenset(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else None
        groups.setdefault(devices, []).append(index)
    found = {devices: _digest_all([leaves[index] for index in indices]) for devices, indices in groups.items()}
    digests = [0] * len(leaves)
    for devices, indices in groups.items():
        for index, digest in zip(indices, jax.device_get(found[devices]), strict=True):
            digests[index] = int(digest)
    return digests


@jax.jit
def _digest_all(leaves: list[Array]) -> list[Array]:
    return [_digest(leaf) for leaf in leaves]


def _digest(leaf: Array) -> Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, unsigned)
    weights = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        weights += jnp.uint32(_multiplier(axis)) * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)


def _multiplier(axis: int) -> int:
    """What one step along an axis adds to the weight; even, so that the weights stay odd."""
    return 2 * (0x9E3779B1 * (axis + 1) % 2**31)
