"""The one function through which every layer calls attention, and the choice of its implementation."""

from collections.abc import Callable
from typing import Any

from lmx.core.types import Array
from lmx.kernels.attention import chunked, decode, reference

AttentionFn = Callable[..., Any]  # the signature of `attention` or of `attention_with_lse`

MIN_CHUNKED_LENGTH = 32  # queries; below that (decoding) one small dense product is faster than a scan over tiles
_IMPLEMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "reference": reference.attention_with_lse,
    "chunked": chunked.attention_with_lse,
    "decode": decode.attention_with_lse,
}


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    positions: Array,
    segment_ids: Array,
    kv_positions: Array | None = None,
    kv_segment_ids: Array | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """Causal grouped-query attention within documents; see `attention_with_lse` for the arguments.

    Returns:
      [B, T, N, H] in q's dtype; exactly 0 where a query sees no key.
    """
    return attention_with_lse(
        q,
        k,
        v,
        positions=positions,
        segment_ids=segment_ids,
        kv_positions=kv_positions,
        kv_segment_ids=kv_segment_ids,
        window=window,
        soft_cap=soft_cap,
        scale=scale,
        implementation=implementation,
    )[0]


def attention_with_lse(
    q: Array,
    k: Array,
    v: Array,
    *,
    positions: Array,
    segment_ids: Array,
    kv_positions: Array | None = None,
    kv_segment_ids: Array | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Attention and its log-sum-exp, so that parts computed apart can be merged.

    Query i sees key j if they share a segment, `kv_segment_ids[j] > 0`, `kv_positions[j] <= positions[i]` and, with a window,
    `positions[i] - kv_positions[j] < window`. Query head n reads KV head n // (N / K). Scores and softmax are float32. What stands
    at padding never matters, not even as NaN.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], K dividing N.
      v: [B, S, K, H].
      positions: [B, T] int32. In self-attention a segment's tokens are adjacent and their positions rise.
      segment_ids: [B, T] int32, 0 on padding.
      kv_positions: [B, S] int32; None = the queries' own (self-attention, S == T).
      kv_segment_ids: [B, S] int32, 0 on padding and empty cache entries; given exactly when `kv_positions` is.
      window: number of visible keys, the query's own included; None = all earlier ones.
      soft_cap: c of `c * tanh(s / c)` on the scaled scores, before masking; None = off.
      scale: multiplier of q.k; None = H ** -0.5.
      implementation: "reference", "chunked" or "decode" (few queries; what stands at padding must be finite); None = the faster
        one of the first two for these shapes.

    Returns:
      out: [B, T, N, H] in q's dtype; exactly 0 where a query sees no key.
      lse: [B, T, N] float32, log of the sum of exponentiated scores; finfo.min where a query sees no key.

    Raises:
      ValueError: shapes that do not fit together, or an unknown implementation.
    """
    if (kv_positions is None) != (kv_segment_ids is None):
        raise ValueError("kv_positions and kv_segment_ids belong together: give both, or neither for self-attention")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} KV heads")
    if kv_positions is None and q.shape[1] != k.shape[1]:
        raise ValueError(f"{q.shape[1]} queries and {k.shape[1]} keys are not self-attention: give kv_positions and kv_segment_ids")
    name = implementation or ("chunked" if q.shape[1] >= MIN_CHUNKED_LENGTH else "reference")
    if name not in _IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is not one of {sorted(_IMPLEMENTATIONS)}")
    return _IMPLEMENTATIONS[name](
        q,
        k,
        v,
        positions=positions,
        segment_ids=segment_ids,
        kv_positions=kv_positions,
        kv_segment_ids=kv_segment_ids,
        window=window,
        soft_cap=soft_cap,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
    )
