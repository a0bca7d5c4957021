"""Dense attention: the specification that every other implementation is tested against."""

import jax
import jax.numpy as jnp

from lmx.core.types import Array

NO_KEY_LSE = float(jnp.finfo(jnp.float32).min)  # log-sum-exp of a row that sees no key; finite, so that merging parts gives no NaN


def visible(positions: Array, segment_ids: Array, kv_positions: Array, kv_segment_ids: Array, window: int | None = None) -> Array:
    """Which key each query sees: an earlier or equal position of its own document, fewer than `window` tokens back.

    Args:
      positions: [B, T] int32.
      segment_ids: [B, T] int32, 0 on padding.
      kv_positions: [B, S] int32.
      kv_segment_ids: [B, S] int32, 0 on padding and on empty cache entries, which nobody sees.
      window: visible keys, the query's own included; None = all earlier ones.

    Returns:
      [B, T, S] bool.
    """
    distance = positions[:, :, None] - kv_positions[:, None, :]  # [B, T, S]
    allowed = (segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (kv_segment_ids > 0)[:, None, :] & (distance >= 0)
    return allowed if window is None else allowed & (distance < window)


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
) -> tuple[Array, Array]:
    """Softmax attention over the whole [T, S] score matrix; arguments and results as in `api.attention_with_lse`."""
    kv_positions = positions if kv_positions is None else kv_positions
    kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
    # Padding is zeroed: a weight of 0 times a NaN would still be NaN.
    q = jnp.where((segment_ids > 0)[..., None, None], q, 0)
    k, v = (jnp.where((kv_segment_ids > 0)[..., None, None], x, 0) for x in (k, v))
    batch, length, num_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q_grouped = q.reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)  # [B, T, K, G, H]
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_grouped, k, preferred_element_type=jnp.float32) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    allowed = visible(positions, segment_ids, kv_positions, kv_segment_ids, window)[:, None, None]  # [B, 1, 1, T, S]
    scores = jnp.where(allowed, scores, NO_KEY_LSE)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(scores - peak), 0.0)  # [B, K, G, T, S]
    total = jnp.sum(weights, axis=-1, keepdims=True)  # [B, K, G, T, 1]
    safe_total = jnp.where(total == 0, 1.0, total)
    probs = (weights / safe_total).astype(v.dtype)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", probs, v, preferred_element_type=jnp.float32)
    lse = jnp.where(total == 0, NO_KEY_LSE, peak + jnp.log(safe_total))[..., 0]  # [B, K, G, T]
    return (
        out.reshape(batch, length, num_heads, v.shape[-1]).astype(q.dtype),
        lse.reshape(batch, num_heads, length).transpose(0, 2, 1),
    )
