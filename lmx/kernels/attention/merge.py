"""Attention computed in parts, put together by the log-sum-exp of each part."""

from collections.abc import Sequence

import jax.numpy as jnp

from lmx.core.types import Array


def merge_parts(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """One softmax over the union of disjoint sets of keys, each attended to apart.

    Args:
      parts: (out [B, T, N, H], lse [B, T, N] float32) of each set, as `attention_with_lse` returns them.

    Returns:
      out: [B, T, N, H] in the first part's dtype; 0 where no part sees a key.
      lse: [B, T, N] float32 of the union; finfo.min where no part sees a key.

    Reference: Dao et al. (2022), arXiv:2205.14135, section 3.1.
    """
    lse = jnp.stack([part for _, part in parts])  # [P, B, T, N]
    peak = jnp.max(lse, axis=0)
    weights = jnp.exp(lse - peak)
    total = jnp.sum(weights, axis=0)
    out = sum(weight[..., None] * part.astype(jnp.float32) for weight, (part, _) in zip(weights, parts, strict=True))
    return (out / total[..., None]).astype(parts[0][0].dtype), peak + jnp.log(total)
