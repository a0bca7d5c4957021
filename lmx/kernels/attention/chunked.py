"""Flash-style attention in plain XLA: a scan over the visible tiles of the score matrix, with a custom VJP.

The tiles that some query may see are listed when the function is traced, so what lies above the diagonal or behind the window costs
nothing. Each step works on one [block, block] tile of all batch rows and heads at once, which keeps the scores in a CPU's cache and
leaves the batch and head axes whole for the partitioner. Nothing of size [T, S] is kept: the backward pass computes each tile
again from q, k and the log-sum-exp.

Inside, arrays are cut into tiles: queries [tiles, B, K, R, H] with R = block * G rows, keys [tiles, B, K, block, H].

Reference: Dao (2023), FlashAttention-2, arXiv:2307.08691, Algorithms 1 and 2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array
from lmx.kernels.attention.reference import NO_KEY_LSE

CPU_BLOCK = 128  # a [block, block] tile of a few heads stays in the second-level cache
ACCELERATOR_BLOCK = 512
MIN_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Masking:
    """The static part of an attention call.

    Attributes:
      window: visible keys, the query's own included; None = all earlier ones.
      soft_cap: c of `c * tanh(s / c)`; None = off.
      scale: multiplier of q.k.
      block: rows and columns of a tile, in tokens.
      by_index: keys are the queries' own, so that index order tells which tiles are out of sight.
    """

    window: int | None
    soft_cap: float | None
    scale: float
    block: int
    by_index: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ids:
    """Position and segment of each query and key, [tiles, B, block] int32; padding queries have segment -1 and padding keys 0."""

    positions: Array
    segments: Array
    kv_positions: Array
    kv_segments: Array


def attention_with_lse(
    q: Array,
    k: Array,
    v: Array,
    *,
    positions: Array,
    segment_ids: Array,
    kv_positions: Array | None,
    kv_segment_ids: Array | None,
    window: int | None,
    soft_cap: float | None,
    scale: float,
    block: int | None = None,
) -> tuple[Array, Array]:
    """Attention by tiles; arguments and results as in `api.attention_with_lse`.

    Without `kv_positions` (self-attention) tokens of a segment must be adjacent and their positions rising.
    """
    by_index = kv_positions is None
    if window is not None and by_index and window >= q.shape[1]:
        window = None
    block = block or _default_block(max(q.shape[1], k.shape[1]), window)
    kv_positions = positions if kv_positions is None else kv_positions
    kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
    ids = Ids(
        positions=_tile_ids(positions, block),
        segments=_tile_ids(jnp.where(segment_ids == 0, -1, segment_ids), block, fill=-1),
        kv_positions=_tile_ids(kv_positions, block),
        kv_segments=_tile_ids(kv_segment_ids, block),
    )
    return _attend(Masking(window, soft_cap, scale, block, by_index), q, k, v, ids)


def _default_block(length: int, window: int | None) -> int:
    """Tokens of a tile's side: near half the window, or a tile holds much that is out of sight; no more than the sequence."""
    block = CPU_BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK
    if window is not None:
        block = max(MIN_BLOCK, min(block, window // 2))
    return min(block, -(-length // 8) * 8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(masking: Masking, q: Array, k: Array, v: Array, ids: Ids) -> tuple[Array, Array]:
    kv_heads = k.shape[2]
    q_tiles = _tile(q, kv_heads, masking.block)
    k_tiles, v_tiles = (_tile(x, kv_heads, masking.block) for x in (k, v))
    row_shape = q_tiles.shape[:-1]

    def step(sums: tuple[Array, Array, Array], pair: Array) -> tuple[tuple[Array, Array, Array], None]:
        i, j = pair[0], pair[1]
        out, peak, total = (_at(x, i) for x in sums)
        q_tile = _rows(q_tiles, ids.segments, i)
        k_tile, v_tile = (_rows(x, ids.kv_segments, j) for x in (k_tiles, v_tiles))
        scores, _, allowed = _scores(masking, q_tile, k_tile, ids, i, j)
        scores = jnp.where(allowed, scores, NO_KEY_LSE)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))  # [B, K, R]
        weights = jnp.where(allowed, jnp.exp(scores - new_peak[..., None]), 0.0)
        decay = jnp.exp(peak - new_peak)
        new_out = out * decay[..., None] + _dot("BKRS,BKSH->BKRH", weights.astype(v.dtype), v_tile)
        new_total = total * decay + jnp.sum(weights, axis=-1)
        return tuple(_put(x, new, i) for x, new in zip(sums, (new_out, new_peak, new_total), strict=True)), None  # type: ignore[return-value]

    zeros = (jnp.zeros(q_tiles.shape, jnp.float32), jnp.full(row_shape, NO_KEY_LSE, jnp.float32), jnp.zeros(row_shape, jnp.float32))
    (out, peak, total), _ = jax.lax.scan(step, zeros, _visible_tiles(masking, q_tiles.shape[0], k_tiles.shape[0]))
    safe_total = jnp.where(total == 0, 1.0, total)
    lse = jnp.where(total == 0, NO_KEY_LSE, peak + jnp.log(safe_total))
    return _untile((out / safe_total[..., None]).astype(q.dtype), q.shape), _untile(lse, q.shape[:-1])


def _attend_forward(masking: Masking, q: Array, k: Array, v: Array, ids: Ids) -> tuple[tuple[Array, Array], tuple]:
    out, lse = _attend(masking, q, k, v, ids)
    return (out, lse), (q, k, v, ids, out, lse)


def _attend_backward(masking: Masking, residuals: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, out, lse = residuals
    out_grad, lse_grad = cotangents
    kv_heads = k.shape[2]
    # d(score) = prob * (out_grad . v - out_grad . out + lse_grad)
    offset = jnp.sum(out_grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - lse_grad  # [B, T, N]
    q_tiles, out_grad_tiles, lse_tiles, offset_tiles = (_tile(x, kv_heads, masking.block) for x in (q, out_grad, lse, offset))
    k_tiles, v_tiles = (_tile(x, kv_heads, masking.block) for x in (k, v))

    def step(sums: tuple[Array, Array, Array], pair: Array) -> tuple[tuple[Array, Array, Array], None]:
        q_sum, k_sum, v_sum = sums
        i, j = pair[0], pair[1]
        q_tile = _rows(q_tiles, ids.segments, i)
        k_tile, v_tile = (_rows(x, ids.kv_segments, j) for x in (k_tiles, v_tiles))
        out_grad_tile = _at(out_grad_tiles, i)
        scores, slope, allowed = _scores(masking, q_tile, k_tile, ids, i, j)
        probs = jnp.where(allowed, jnp.exp(scores - _at(lse_tiles, i)[..., None]), 0.0)  # [B, K, R, S]
        probs_grad = _dot("BKRH,BKSH->BKRS", out_grad_tile, v_tile)
        scores_grad = probs * (probs_grad - _at(offset_tiles, i)[..., None]) * masking.scale
        scores_grad = (scores_grad if slope is None else scores_grad * slope).astype(q.dtype)
        # Keys' gradients are summed as [H, S]: the product then reads both operands along their rows.
        return (
            _put(q_sum, _at(q_sum, i) + _dot("BKRS,BKSH->BKRH", scores_grad, k_tile), i),
            _put(k_sum, _at(k_sum, j) + _dot("BKRH,BKRS->BKHS", q_tile, scores_grad), j),
            _put(v_sum, _at(v_sum, j) + _dot("BKRH,BKRS->BKHS", out_grad_tile, probs.astype(out_grad.dtype)), j),
        ), None

    keys_shape = (*k_tiles.shape[:3], k_tiles.shape[4], k_tiles.shape[3])  # [tiles, B, K, H, block]
    zeros = (jnp.zeros(q_tiles.shape, jnp.float32), jnp.zeros(keys_shape, jnp.float32), jnp.zeros(keys_shape, jnp.float32))
    sums, _ = jax.lax.scan(step, zeros, _visible_tiles(masking, q_tiles.shape[0], k_tiles.shape[0]))
    q_grad, k_grad, v_grad = sums[0], jnp.swapaxes(sums[1], -1, -2), jnp.swapaxes(sums[2], -1, -2)
    return (
        _untile(q_grad.astype(q.dtype), q.shape),
        _untile(k_grad.astype(k.dtype), k.shape),
        _untile(v_grad.astype(v.dtype), v.shape),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _visible_tiles(masking: Masking, q_tiles: int, kv_tiles: int) -> Array:
    """[P, 2] int32, the (query tile, key tile) pairs in which some query may see some key."""
    i, j = np.mgrid[:q_tiles, :kv_tiles].reshape(2, -1).astype(np.int32)
    if masking.by_index:
        seen = j <= i
        if masking.window is not None:
            seen &= (i - j - 1) * masking.block + 1 < masking.window  # distance of tile i's first query from tile j's last key
        i, j = i[seen], j[seen]
    return jnp.asarray(np.stack([i, j], axis=1))


def _scores(masking: Masking, q: Array, k: Array, ids: Ids, i: Array, j: Array) -> tuple[Array, Array | None, Array]:
    """Capped scores of one tile, the slope of the cap (None without one) and the mask, [B, K, R, S] each."""
    scores = _dot("BKRH,BKSH->BKRS", q, k) * masking.scale
    slope = None
    if masking.soft_cap is not None:
        tanh = jnp.tanh(scores / masking.soft_cap)
        scores, slope = masking.soft_cap * tanh, 1.0 - tanh * tanh
    distance = _at(ids.positions, i)[:, :, None] - _at(ids.kv_positions, j)[:, None, :]  # [B, block, S]
    allowed = (_at(ids.segments, i)[:, :, None] == _at(ids.kv_segments, j)[:, None, :]) & (distance >= 0)
    if masking.window is not None:
        allowed &= distance < masking.window
    return scores, slope, _for_rows(allowed, q)[:, None]


def _rows(tiles: Array, segments: Array, index: Array) -> Array:
    """One tile [B, K, R, H], padding zeroed: a weight of 0 times a NaN would still be NaN."""
    tile = _at(tiles, index)
    return jnp.where(_for_rows(_at(segments, index) > 0, tile)[:, None, :, None], tile, 0)


def _for_rows(x: Array, tile: Array) -> Array:
    """[B, block, ...] -> [B, R, ...]: each token's value for every row of the tile that it owns."""
    return jnp.repeat(x, tile.shape[2] // x.shape[1], axis=1)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _at(tiles: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(tiles, index, keepdims=False)


def _put(tiles: Array, tile: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(tiles, tile, index, 0)


def _tile_ids(x: Array, block: int, fill: int = 0) -> Array:
    """[B, T] -> [tiles, B, block], the tail filled with `fill`."""
    batch, length = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -length % block)), constant_values=fill)
    return padded.reshape(batch, -1, block).swapaxes(0, 1)


def _tile(x: Array, kv_heads: int, block: int) -> Array:
    """[B, T, N, ...] -> [tiles, B, K, block * G, ...], the tail filled with zeros; row = token * G + head within the group."""
    batch, length, heads, *rest = x.shape
    padded = jnp.pad(x, [(0, 0), (0, -length % block)] + [(0, 0)] * (1 + len(rest)))
    split = padded.reshape(batch, -1, block, kv_heads, heads // kv_heads, *rest)  # [B, tiles, block, K, G, ...]
    return jnp.moveaxis(split, (1, 3), (0, 2)).reshape(split.shape[1], batch, kv_heads, -1, *rest)


def _untile(tiles: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_tile`, to [B, T, N, ...] = `shape`."""
    batch, length, heads, *rest = shape
    count, _, kv_heads, _, *_ = tiles.shape
    split = tiles.reshape(count, batch, kv_heads, -1, heads // kv_heads, *rest)  # [tiles, B, K, block, G, ...]
    return jnp.moveaxis(split, (0, 2), (1, 3)).reshape(batch, -1, heads, *rest)[:, :length]
