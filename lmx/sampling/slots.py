"""The engine's state on the device: a fixed pool of slots, each a row of the KV cache with what its sample needs."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmx.core.types import Array, Params
from lmx.model.cache import Cache
from lmx.model.unstacked import stack_cache, unstack_cache
from lmx.sampling.logits import RowSampling
from lmx.sampling.padding import Tokens
from lmx.sharding import place
from lmx.sharding.rules import Rules

STOP_IDS = 8  # stop ids of a row that the device knows; the host knows all


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSetup:
    """What a slot is given when a sample moves in; host arrays.

    Attributes:
      sampling: how the row draws.
      token: [B] int32, the prompt's last token: the first input of decoding.
      remaining: [B] int32, tokens still to draw.
      stop_ids: [B, STOP_IDS] int32, ids that end the row, -1 where there are fewer.
      top_logprobs: [B] int32, how many to report.
    """

    sampling: RowSampling
    token: Array
    remaining: Array
    stop_ids: Array
    top_logprobs: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The pool.

    Attributes:
      cache: rows' keys and values; an inactive row's lengths and segments are stale until its slot is filled again.
      setup: of each row.
      active: [B] bool, rows that are decoding.
      drawn: [B] int32, tokens drawn so far.
      seen: [B, V] bool, prompt and drawn tokens; kept up for rows with a repetition penalty alone.
    """

    cache: Cache
    setup: RowSetup
    active: Array
    drawn: Array
    seen: Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static part of the programs: one compilation serves all engines whose layouts are equal.

    Attributes:
      decode: the model's.
      init_cache: the model's.
      kv_dtype: None = the activation dtype, or "int8".
      mesh: device mesh, None = a single device.
      rules: logical axis -> mesh axes.
      unstacked: the pool's cache, and the parameters that decode with it, hold every layer in arrays of its own.
    """

    decode: Callable[..., Any]
    init_cache: Callable[..., Cache]
    kv_dtype: str | None
    mesh: Mesh | None
    rules: Rules
    unstacked: bool

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache without tokens, its layers stacked."""
        return self.init_cache(rows, length, self.kv_dtype)

    def pooled(self, cache: Cache) -> Cache:
        """A cache with stacked layers as the pool holds it."""
        return unstack_cache(cache) if self.unstacked else cache

    def pin(self, slots: Slots) -> Slots:
        """The pool under its sharding: rows over the batch axes, KV heads over the tensor axis, the vocabulary likewise."""
        if self.mesh is None or self.mesh.size == 1:
            return slots
        pin = place.constrain(self.mesh, self.rules)
        rows = partial(jax.tree.map, lambda x: pin(x, ("batch", *(None,) * (x.ndim - 1))))
        layers = tuple(
            dataclasses.replace(
                layer,
                k=jax.tree.map(lambda x: pin(x, _entry_axes(x)), layer.k),
                v=jax.tree.map(lambda x: pin(x, _entry_axes(x)), layer.v),
                positions=rows(layer.positions),
                segment_ids=rows(layer.segment_ids),
            )
            for layer in slots.cache.layers
        )
        return Slots(
            cache=Cache(layers, rows(slots.cache.lengths)),
            setup=rows(slots.setup),
            active=rows(slots.active),
            drawn=rows(slots.drawn),
            seen=pin(slots.seen, ("batch", "activation_vocab")),
        )


def _entry_axes(entries: Array) -> tuple[str | None, ...]:
    """Logical axes of keys [R, B, K, H, S] and values [R, B, K, S, H], or of their scales [R, B, K, S]."""
    return (None, "batch", "activation_kv_heads", *(None,) * (entries.ndim - 3))


def empty_setup(rows: int, vocabulary: int) -> RowSetup:
    """Host arrays of plain greedy rows, for the host to fill in."""
    host: Any = np  # numpy here, arrays of the device inside a program
    return RowSetup(
        sampling=RowSampling(
            key=host.zeros((rows, 2), np.uint32),
            temperature=host.zeros(rows, np.float32),
            top_k=host.full(rows, vocabulary, np.int32),
            top_p=host.ones(rows, np.float32),
            min_p=host.zeros(rows, np.float32),
            repetition_penalty=host.ones(rows, np.float32),
            vocab_size=host.full(rows, vocabulary, np.int32),
        ),
        token=host.zeros(rows, np.int32),
        remaining=host.zeros(rows, np.int32),
        stop_ids=host.full((rows, STOP_IDS), -1, np.int32),
        top_logprobs=host.zeros(rows, np.int32),
    )


@partial(jax.jit, static_argnames=("layout", "rows", "capacity", "vocabulary"))
def init_slots(*, layout: Layout, rows: int, capacity: int, vocabulary: int) -> Slots:
    """An empty pool whose rows hold up to `capacity` tokens."""
    slots = Slots(
        cache=layout.pooled(layout.empty_cache(rows, capacity)),
        setup=jax.tree.map(jnp.asarray, empty_setup(rows, vocabulary)),
        active=jnp.zeros(rows, bool),
        drawn=jnp.zeros(rows, jnp.int32),
        seen=jnp.zeros((rows, vocabulary), bool),
    )
    return layout.pin(slots)


@partial(jax.jit, static_argnames=("layout", "capacity"))  # another size: there is nothing to donate
def resize(slots: Slots, *, layout: Layout, capacity: int) -> Slots:
    """The pool with rows of another capacity; no row in use holds more tokens than the smaller of the two.

    Such rows have never wrapped around a ring, so every entry keeps its index.
    """
    empty = layout.pooled(layout.empty_cache(slots.active.shape[0], capacity))
    cache = jax.tree.map(_fit, slots.cache, empty)
    return layout.pin(dataclasses.replace(slots, cache=cache))


@partial(jax.jit, static_argnames="layout")
def prefill_first(params: Params, tokens: Array, lengths: Array, *, layout: Layout) -> Cache:
    """Computes the beginnings of prompts, which attend to themselves alone.

    Args:
      params: the model's.
      tokens: [P, T] int32, right-padded.
      lengths: [P] int32, 0 = an empty row.
      layout: static.

    Returns:
      Their cache of T tokens a row, for `place_rows`.
    """
    cache = layout.empty_cache(*tokens.shape)
    return layout.decode(params, _continued(tokens, lengths, cache), cache)[1]


@partial(jax.jit, donate_argnames="slots", static_argnames=("layout", "capacity"))
def place_rows(slots: Slots, cache: Cache, rows: Array, *, layout: Layout, capacity: int) -> Slots:
    """Writes what `prefill_first` computed over whole rows of the pool; what stood there is gone.

    Args:
      slots: the pool.
      cache: of P rows.
      rows: [P] int32 slot of each; the number of slots = nowhere.
      layout: static.
      capacity: of the pool's rows.
    """
    whole = layout.empty_cache(rows.shape[0], capacity)
    return layout.pin(_put_rows(slots, layout.pooled(jax.tree.map(_fit, cache, whole)), rows))


@partial(jax.jit, donate_argnames="slots", static_argnames="layout")
def prefill_more(params: Params, slots: Slots, tokens: Array, lengths: Array, rows: Array, *, layout: Layout) -> Slots:
    """Appends the next tokens of prompts to rows that hold their beginning; arguments as of the two functions above."""
    cache = _take_rows(slots.cache, rows)
    cache = stack_cache(cache) if layout.unstacked else cache
    _, cache = layout.decode(params, _continued(tokens, lengths, cache), cache)
    return layout.pin(_put_rows(slots, layout.pooled(cache), rows))


@partial(jax.jit, donate_argnames="slots", static_argnames="layout")
def copy_rows(slots: Slots, source: Array, target: Array, *, layout: Layout) -> Slots:
    """Copies cache rows: source [M] and target [M] int32; the number of slots as a target = nowhere."""
    return layout.pin(_put_rows(slots, _take_rows(slots.cache, source), target))


@partial(jax.jit, donate_argnames="slots", static_argnames="layout")
def note_seen(slots: Slots, row: Array, tokens: Array, *, layout: Layout) -> Slots:
    """Makes a row's seen tokens those of a prompt: row [] int32, tokens [T] int32, V where it is shorter."""
    marks = jnp.zeros(slots.seen.shape[1], bool).at[tokens].set(True, mode="drop")
    return layout.pin(dataclasses.replace(slots, seen=slots.seen.at[row].set(marks)))


@partial(jax.jit, donate_argnames="slots", static_argnames="layout")
def activate(slots: Slots, setup: RowSetup, chosen: Array, *, layout: Layout) -> Slots:
    """Lets the `chosen` rows, [B] bool, begin to decode with their new setup."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return layout.pin(
        dataclasses.replace(
            slots,
            setup=jax.tree.map(choose, setup, slots.setup),
            active=slots.active | chosen,
            drawn=jnp.where(chosen, 0, slots.drawn),
        )
    )


def _continued(tokens: Array, lengths: Array, cache: Cache) -> Tokens:
    """Right-padded tokens behind what the cache's rows hold."""
    offsets = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Tokens(tokens, (offsets < lengths[:, None]).astype(jnp.int32), cache.lengths[:, None] + offsets)


def _fit(x: Array, like: Array) -> Array:
    """x cut, or padded with zeros, to the shape of `like`."""
    cut = x[tuple(slice(0, size) for size in like.shape)]
    return jnp.pad(cut, [(0, size - have) for size, have in zip(like.shape, cut.shape, strict=True)])


def _row_axis(path: tuple) -> int:
    return 1 if any(getattr(key, "name", None) in ("k", "v") for key in path) else 0


def _take_rows(cache: Cache, rows: Array) -> Cache:
    """Rows [P] of the cache; where a row is nowhere, some row."""
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.take(x, rows, axis=_row_axis(path), mode="clip"), cache)


def _put_rows(slots: Slots, cache: Cache, rows: Array) -> Slots:
    """The pool with rows [P] of its cache replaced by those of another of the same capacity."""

    def put(path: tuple, old: Array, new: Array) -> Array:
        index = (slice(None),) * _row_axis(path)
        return old.at[(*index, rows)].set(new, mode="drop")

    return dataclasses.replace(slots, cache=jax.tree_util.tree_map_with_path(put, slots.cache, cache))
