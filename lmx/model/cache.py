"""KV cache as an explicit pytree: full for global layers, a ring for windowed ones; in the activation dtype or in int8."""

import dataclasses

import jax
import jax.numpy as jnp

from lmx.core.types import Array, TokenBatch
from lmx.model.config import AttentionConfig, DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Keys or values in 8 bits, a scale for each token and head.

    Attributes:
      values: int8 in -127..127, of the shape of the keys or values.
      scales: [R, B, K, S] float32, the largest magnitude over H divided by 127.
    """

    values: Array
    scales: Array


Entries = Array | Quantized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of the R layers at one place of the layer pattern; an empty entry has segment id 0.

    Token n of a row (counted from 0 over everything appended to it) lies in entry n, or n % S of a ring. Heads come before entries,
    the order in which attention multiplies them, keys with their features first. An empty entry holds finite numbers, at first
    zeros.

    Attributes:
      k: [R, B, K, H, S] keys, after RoPE and QK-norm (or Quantized).
      v: [R, B, K, S, H] values (or Quantized).
      positions: [B, S] int32.
      segment_ids: [B, S] int32.
      ring: the newest tokens overwrite the oldest; S is the window, or less where it never fills.
    """

    k: Entries
    v: Entries
    positions: Array
    segment_ids: Array
    ring: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the rows it is decoding.

    Attributes:
      layers: one LayerCache for each block of the layer pattern.
      lengths: [B] int32, tokens appended to each row so far.
    """

    layers: tuple[LayerCache, ...]
    lengths: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Append:
    """How the new tokens of one call enter a LayerCache, and which keys their queries may attend to.

    Attributes:
      slots: [B, T] int32 entry of each new token; S where it is not written.
      positions: [B, S'] int32 of the keys attended to.
      segment_ids: [B, S'] int32 of the keys attended to.
      write_first: the keys are the cache after writing (S' = S); else the cache before it, then the new tokens (S' = S + T).
    """

    slots: Array
    positions: Array
    segment_ids: Array
    write_first: bool = dataclasses.field(metadata={"static": True})


def init_cache(config: DecoderConfig, batch_size: int, length: int, dtype: str) -> Cache:
    """An empty cache.

    Args:
      config: the decoder's.
      batch_size: B rows.
      length: most tokens a row will hold, at most `config.max_length`.
      dtype: of the keys and values; "int8" stores them quantized.

    Returns:
      Cache of `length` entries in global layers and min(window, length) in windowed ones.

    Raises:
      ValueError: length outside 1..max_length.
    """
    if not 1 <= length <= config.max_length:
        raise ValueError(f"cache length {length} must lie in 1..{config.max_length}, the model's max_length")
    layers = tuple(_init_layer(block.attention, config.num_repeats, batch_size, length, dtype) for block in config.layer_pattern)
    return Cache(layers, jnp.zeros(batch_size, jnp.int32))


def _init_layer(attention: AttentionConfig, repeats: int, batch_size: int, length: int, dtype: str) -> LayerCache:
    size = length if attention.window is None else min(attention.window, length)
    heads = (repeats, batch_size, attention.kv_heads)

    def entries(*shape: int) -> Entries:
        if dtype == "int8":
            return Quantized(jnp.zeros((*heads, *shape), jnp.int8), jnp.zeros((*heads, size)))
        return jnp.zeros((*heads, *shape), dtype)

    return LayerCache(
        k=entries(attention.head_dim, size),
        v=entries(size, attention.head_dim),
        positions=jnp.zeros((batch_size, size), jnp.int32),
        segment_ids=jnp.zeros((batch_size, size), jnp.int32),
        ring=attention.window is not None,
    )


def append(cache: Cache, batch: TokenBatch) -> tuple[tuple[Append, ...], Cache]:
    """Plans the writing of a call's tokens, all but their keys and values.

    A single token may overwrite the oldest entry of a full ring before it attends, since that entry has just left the window.
    With several tokens the earlier ones still need the entries that the later ones overwrite, so all attend to old entries and
    new tokens side by side.

    Args:
      cache: before the call.
      batch: [B, T] new tokens; those with segment id 0 are not written.

    Returns:
      One Append for each block of the pattern, and the cache with positions, segment ids and lengths brought up to date.

    Raises:
      ValueError: more tokens than a global layer's cache holds at all.
    """
    length = batch.tokens.shape[1]
    valid = batch.segment_ids > 0
    index = cache.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1  # [B, T] place in the row
    lengths = cache.lengths + jnp.sum(valid, axis=1, dtype=jnp.int32)
    plans, layers = [], []
    for layer in cache.layers:
        size = layer.positions.shape[1]
        if not layer.ring and length > size:
            raise ValueError(f"{length} new tokens do not fit a cache of {size}; make it longer in init_cache")
        if layer.ring:  # of several tokens for one entry the newest stays
            slots = jnp.where(valid & (index >= lengths[:, None] - size), index % size, size)
        else:
            slots = jnp.where(valid & (index < size), index, size)
        positions = write_rows(layer.positions, slots, batch.positions)
        segment_ids = write_rows(layer.segment_ids, slots, batch.segment_ids)
        write_first = not layer.ring or length == 1
        keys = (
            (positions, segment_ids)
            if write_first
            else (_beside(layer.positions, batch.positions), _beside(layer.segment_ids, batch.segment_ids))
        )
        plans.append(Append(slots, *keys, write_first=write_first))
        layers.append(dataclasses.replace(layer, positions=positions, segment_ids=segment_ids))
    return tuple(plans), Cache(tuple(layers), lengths)


def write_rows(entries: Array, slots: Array, new: Array) -> Array:
    """[B, S] entries with new [B, T] values at slots [B, T]; slot S is nowhere."""
    rows = jnp.arange(entries.shape[0])[:, None]
    return entries.at[rows, slots].set(new, mode="drop")


def write_layer(entries: Array, layer: Array, slots: Array, new: Array, *, features_first: bool = False) -> Array:
    """[R, B, K, S, ...] entries with layer's slots [B, T] set to new [B, T, K, ...]; slot S is nowhere.

    With `features_first` the entries are [R, B, K, H, S] and new is [B, T, K, H].
    """
    rows = jnp.arange(entries.shape[1])[:, None]
    index = (layer, rows, slice(None), slice(None), slots) if features_first else (layer, rows, slice(None), slots)
    return entries.at[index].set(new.astype(entries.dtype), mode="drop")


def attended(entries: Entries, layer: Array, plan: Append, new: Array, *, keys: bool) -> tuple[Array, Entries]:
    """Keys or values that the new tokens attend to in one layer, and the entries after writing.

    Args:
      entries: of a LayerCache.
      layer: [] int32, which of the R.
      plan: where the new tokens go.
      new: [B, T, K, H].
      keys: the entries are keys, not values.

    Returns:
      ([B, S', K, H], entries).
    """
    quantized = isinstance(entries, Quantized)
    stored, scales = quantize(new) if quantized else (new, None)
    before = entries.values if isinstance(entries, Quantized) else entries
    values = write_layer(before, layer, plan.slots, stored, features_first=keys)
    written: Entries = values
    if isinstance(entries, Quantized) and scales is not None:
        written = Quantized(values, write_layer(entries.scales, layer, plan.slots, scales))
    if plan.write_first:
        return _read(written, layer, new.dtype, keys), written
    # The new tokens as they will be read later, so that how a prompt is cut into calls changes nothing.
    read_later = new.astype(before.dtype) if scales is None else dequantize(stored, scales, new.dtype)
    return jnp.concatenate([_read(entries, layer, new.dtype, keys), read_later], axis=1), written


def _read(entries: Entries, layer: Array, dtype: jnp.dtype, keys: bool) -> Array:
    """One layer's entries as [B, S, K, H]; attention turns them back, so that nothing is moved."""
    order = (0, 3, 1, 2) if keys else (0, 2, 1, 3)
    if isinstance(entries, Quantized):
        return dequantize(jnp.transpose(entries.values[layer], order), jnp.swapaxes(entries.scales[layer], 1, 2), dtype)
    return jnp.transpose(entries[layer], order)


def quantize(x: Array) -> tuple[Array, Array]:
    """Rounds x [..., H] to int8 values [..., H] and float32 scales [...], the largest magnitude over H divided by 127."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / 127.0
    values = jnp.round(x / jnp.where(scales == 0, 1.0, scales)[..., None])
    return values.astype(jnp.int8), scales


def dequantize(values: Array, scales: Array, dtype: jnp.dtype) -> Array:
    """int8 values [..., H] times float32 scales [...], in `dtype`."""
    return (values.astype(jnp.float32) * scales[..., None]).astype(dtype)


def _beside(old: Array, new: Array) -> Array:
    """Old entries [B, S] and new tokens [B, T] along the key axis."""
    return jnp.concatenate([old, new], axis=1)
