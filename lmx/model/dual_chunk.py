"""Dual chunk attention: three parts, each with its own rotation of the queries, merged by their log-sum-exps.

Keys are rotated by (and cached at) their position inside their chunk of s tokens. A query that is D chunks later reads

    D = 0   at its own position in the chunk: relative positions are exact,
    D = 1   at min(i mod s + s, c - 1),
    D >= 2  at c - 1,

so that no relative position reaches c, the trained length.

Reference: An et al. (2024), arXiv:2402.17463, Eq. 2-7.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.model import rope
from lmx.model.config import AttentionConfig, DualChunk, RopeConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """One of the three parts.

    Attributes:
      cos: [B, T, H / 2] float32, rotation of the queries.
      sin: [B, T, H / 2] float32.
      positions: [B, T] int32 of the queries: numbers for which causality and `window` pick the keys of this part.
      kv_positions: [B, S] int32 of the keys, likewise.
      window: None = any distance.
    """

    cos: Array
    sin: Array
    positions: Array
    kv_positions: Array
    window: int | None = dataclasses.field(metadata={"static": True})


def key_rotation(positions: Array, config: AttentionConfig, chunks: DualChunk) -> tuple[Array, Array]:
    """(cos, sin), each [B, T, H / 2] float32, of keys at their places in their chunks; positions are [B, T] int32."""
    return rope.rotation(positions % chunks.chunk_size, config.head_dim, config.rope)


def parts(positions: Array, kv_positions: Array, config: AttentionConfig, chunks: DualChunk) -> tuple[Part, Part, Part]:
    """The same chunk, the one before, and all earlier ones.

    Args:
      positions: [B, T] int32 of the queries.
      kv_positions: [B, S] int32 of the keys.
      config: head size and RoPE.
      chunks: sizes.
    """
    size = chunks.chunk_size
    last = chunks.window - 1 + chunks.clamp_offset
    place, chunk, kv_chunk = positions % size, positions // size, kv_positions // size
    # With gaps of s between the chunks, a window of s holds what is in the query's own chunk.
    spread, kv_spread = positions + chunk * size, kv_positions + kv_chunk * size
    return (
        _part(place, config.head_dim, config.rope, spread, kv_spread, size),
        _part(jnp.minimum(place + size, last), config.head_dim, config.rope, chunk - 1, kv_chunk, 1),
        _part(jnp.full_like(place, last), config.head_dim, config.rope, chunk - 2, kv_chunk, None),
    )


def _part(angles_at: Array, head_dim: int, config: RopeConfig, positions: Array, kv_positions: Array, window: int | None) -> Part:
    return Part(*rope.rotation(angles_at, head_dim, config), positions, kv_positions, window)


def temperature(chunks: DualChunk) -> float:
    """Multiplier of the scores, (0.1 ln(length_factor) + 1)^2, as YaRN has it."""
    return (0.1 * math.log(chunks.length_factor) + 1.0) ** 2
