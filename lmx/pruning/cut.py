"""The cut: a model with fewer layers, channels, heads or FFN units, made of the kept parts of a larger one.

Its logits are those of the parent with the dropped parts set to 0 (`masked`), whatever the family.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core import config as configs
from lmx.core.types import Array, Params, PyTree
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, MoEConfig, NormConfig, TiedHead
from lmx.model.decoder import build_model
from lmx.optim.layout import path_name

_WRITES = ("attention/o/kernel", "ffn/down/kernel", "ffn/shared/down/kernel", "ffn/experts/down")  # leaves that add to the residual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """What stays, as ids in ascending order (heads: grouped as they are read); None = all of it.

    Attributes:
      layers: [L'] numbers of the kept layers; layer j of the child is of the same place in the layer pattern as `layers[j]`.
      embed: [D'] channels of the residual stream.
      q_heads: for each place of the layer pattern, [R, N'] query heads, those of one KV head together.
      kv_heads: for each place, [R, K'].
      ffn: for each place, [R, F'] units of the FFN.
    """

    layers: np.ndarray | None = None
    embed: np.ndarray | None = None
    q_heads: tuple[np.ndarray | None, ...] | None = None
    kv_heads: tuple[np.ndarray | None, ...] | None = None
    ffn: tuple[np.ndarray | None, ...] | None = None

    def of_place(self, axis: str, place: int) -> np.ndarray | None:
        """[R, n'] kept ids of "q_heads", "kv_heads" or "ffn" at a place of the pattern."""
        found: tuple[np.ndarray | None, ...] | None = getattr(self, axis)
        return None if found is None else found[place]


def check_target(source: DecoderConfig, target: DecoderConfig) -> None:
    """Raises ValueError when a target is not the source with smaller sizes."""
    if len(source.layer_pattern) != len(target.layer_pattern):
        raise ValueError(
            f"the target's layer pattern has {len(target.layer_pattern)} blocks and the source's {len(source.layer_pattern)}; "
            "pruning keeps the pattern"
        )
    pattern = tuple(_resized(old, new) for old, new in zip(source.layer_pattern, target.layer_pattern, strict=True))
    same = dataclasses.replace(source, num_layers=target.num_layers, model_dim=target.model_dim, layer_pattern=pattern)
    if same != target:
        raise ValueError(f"pruning changes sizes only, but the target also changes {configs.diff(same, target).splitlines()[0]}")
    for name, old, new in sizes(source, target):
        if new > old:
            raise ValueError(f"the target's {name}={new} exceeds the source's {old}; pruning only makes models smaller")
    for old_block, new_block in zip(source.layer_pattern, target.layer_pattern, strict=True):
        groups = [block.attention.q_heads // block.attention.kv_heads for block in (old_block, new_block)]
        if groups[1] > groups[0]:
            raise ValueError(
                f"the target has {groups[1]} query heads a KV head and the source {groups[0]}: a query head reads the keys that it "
                "was trained on, so keep more KV heads"
            )


def sizes(source: DecoderConfig, target: DecoderConfig) -> list[tuple[str, int, int]]:
    """(name, the source's size, the target's) of everything that pruning may change."""
    found = [(name, getattr(source, name), getattr(target, name)) for name in ("num_layers", "model_dim")]
    for place, (old, new) in enumerate(zip(source.layer_pattern, target.layer_pattern, strict=True)):
        for name in ("q_heads", "kv_heads"):
            found.append((f"layer_pattern.{place}.attention.{name}", getattr(old.attention, name), getattr(new.attention, name)))
        if isinstance(old.ffn, FFNConfig) and isinstance(new.ffn, FFNConfig):
            found.append((f"layer_pattern.{place}.ffn.ffn_dim", old.ffn.ffn_dim, new.ffn.ffn_dim))
    return found


def cut(params: Params, source: DecoderConfig, keep: Keep) -> Params:
    """The child's parameters, in the source's dtypes.

    RMSNorm divides by a mean over all D channels. Over D' of them the same sum gives a greater mean, so gains are multiplied by
    sqrt(D / D'): the child then computes what the parent computes with the dropped channels at 0 (exactly with eps D / D' in the
    place of eps). Where embeddings are scaled by sqrt(D), the table takes the same factor, and where the head is tied to it, the
    final norm gives it back.

    Args:
      params: the parent's; arrays, or tracers under jit.
      source: its architecture.
      keep: what stays.
    """
    axes = build_model(source).axes

    def leaf(path: tuple, array: Array, names: tuple[str | None, ...]) -> Array:
        name = path_name(path)
        place = int(name.split("/")[1]) if name.startswith("blocks/") else None
        for dim, axis in enumerate(names):
            if axis == "embed" and keep.embed is not None:
                array = jnp.take(array, jnp.asarray(keep.embed), axis=dim)
            elif place is not None and axis in ("q_heads", "kv_heads", "ffn"):
                array = _take_by_layer(array, keep.of_place(axis, place), dim)
        if keep.embed is not None:
            array = _rescaled(name, array, names, source, len(keep.embed))
        if place is not None and keep.layers is not None:
            repeats = np.asarray(keep.layers)[place :: len(source.layer_pattern)] // len(source.layer_pattern)
            array = jnp.take(array, jnp.asarray(repeats), axis=0)
        return array

    return _map_with_axes(leaf, params, axes)


def masked(params: Params, source: DecoderConfig, keep: Keep) -> Params:
    """The parent with all that is not kept set to 0 where it would enter the residual stream: what the child is equal to."""
    axes = build_model(source).axes
    repeats, places = source.num_repeats, len(source.layer_pattern)

    def leaf(path: tuple, array: Array, names: tuple[str | None, ...]) -> Array:
        name = path_name(path)
        writes = name.startswith("blocks/") and name.endswith(_WRITES)
        if not writes and name != "embed/table":
            return array
        place = int(name.split("/")[1]) if writes else 0
        for dim, axis in enumerate(names):
            ids = keep.embed if axis == "embed" else None
            if axis in ("q_heads", "ffn"):
                ids = keep.of_place(axis, place)
            elif axis == "layers" and keep.layers is not None:
                kept = np.asarray(keep.layers)
                ids = kept[kept % places == place] // places
            if ids is not None:
                array = array * _indicator(np.asarray(ids), dim, array.shape, repeats).astype(array.dtype)
        return array

    return _map_with_axes(leaf, params, axes)


def _resized(source: BlockConfig, target: BlockConfig) -> BlockConfig:
    """The source's block with the target's sizes."""
    heads = {name: getattr(target.attention, name) for name in ("q_heads", "kv_heads")}
    ffn = source.ffn
    if isinstance(ffn, FFNConfig) and isinstance(target.ffn, FFNConfig):
        ffn = dataclasses.replace(ffn, ffn_dim=target.ffn.ffn_dim)
    elif isinstance(ffn, MoEConfig) and ffn != target.ffn:
        raise ValueError("the widths of a mixture of experts are not pruned; give the target the source's MoEConfig")
    return dataclasses.replace(source, attention=dataclasses.replace(source.attention, **heads), ffn=ffn)


def _take_by_layer(array: Array, ids: np.ndarray | None, dim: int) -> Array:
    """Of each layer (leading axis) the entries ids[layer] along an axis."""
    if ids is None:
        return array
    take: Callable[..., Array] = jax.vmap(lambda x, kept: jnp.take(x, kept, axis=dim - 1))
    return take(array, jnp.asarray(ids))


def _rescaled(name: str, array: Array, axes: tuple[str | None, ...], source: DecoderConfig, kept: int) -> Array:
    """A leaf of the child with the factors that a smaller D asks for."""
    root = math.sqrt(source.model_dim / kept)
    if name == "embed/table":
        return (array * root).astype(array.dtype) if source.embedding_scale else array
    if axes[-1] != "embed" or not name.endswith("/gain"):
        return array
    final = name.startswith("final_norm")
    if final and source.embedding_scale and isinstance(source.head, TiedHead):
        return array
    norm: NormConfig = source.final_norm if final else source.layer_pattern[int(name.split("/")[1])].norm
    offset = 1.0 if norm.unit_offset else 0.0
    return ((array.astype(jnp.float32) + offset) * root - offset).astype(array.dtype)


def _indicator(ids: np.ndarray, dim: int, shape: tuple[int, ...], repeats: int) -> np.ndarray:
    """1 at the ids ([n'], or [R, n'] layer by layer) along an axis, else 0; broadcastable to the shape."""
    size = shape[dim]
    if ids.ndim == 1:
        flags = np.isin(np.arange(size), ids).astype(np.float32)
        return flags.reshape([size if axis == dim else 1 for axis in range(len(shape))])
    flags = np.zeros((repeats, size), np.float32)
    np.put_along_axis(flags, ids, 1.0, axis=1)
    return flags.reshape([repeats if axis == 0 else size if axis == dim else 1 for axis in range(len(shape))])


def _map_with_axes(function: Callable[..., Array], params: Params, axes: PyTree) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, names, array: function(path, array, names), axes, params, is_leaf=lambda x: isinstance(x, tuple)
    )
