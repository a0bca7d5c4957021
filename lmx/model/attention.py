"""Grouped-query attention: projections, RoPE, QK-norm and the cache, around one call of the attention kernel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array
from lmx.kernels.attention import MIN_CHUNKED_LENGTH, merge_parts
from lmx.model import cache, dual_chunk, rope
from lmx.model.config import AttentionConfig
from lmx.model.execution import Execution
from lmx.model.linear import Linear
from lmx.model.norm import RMSNorm

KV = tuple[cache.Entries, cache.Entries]  # keys and values of a LayerCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockInputs:
    """What a block reads besides its activations, the same at every repeat of the pattern.

    Attributes:
      positions: [B, T] int32.
      segment_ids: [B, T] int32.
      cos: [B, T, H / 2] float32, of this block's RoPE; under dual chunk attention the keys'.
      sin: [B, T, H / 2] float32.
      append: how new tokens enter the cache; None = no cache, queries attend to the call's own tokens.
      chunk_parts: the parts of dual chunk attention; empty = plain attention.
    """

    positions: Array
    segment_ids: Array
    cos: Array
    sin: Array
    append: cache.Append | None = None
    chunk_parts: tuple[dual_chunk.Part, ...] = ()


class Attention(nn.Module):
    """Causal attention within documents, `o(attend(q(x), k(x), v(x)))`.

    Attributes:
      config: shape and variants.
      model_dim: D.
      execution: how to run.
      init_std: standard deviation at init, None = fan-in.
    """

    config: AttentionConfig
    model_dim: int
    execution: Execution
    init_std: float | None = None

    @nn.compact
    def __call__(self, x: Array, inputs: BlockInputs, kv: KV | None, layer: Array) -> tuple[Array, KV | None]:
        """Activations [B, T, D], and the pattern place's cache with this layer's new tokens written.

        Args:
          x: [B, T, D].
          inputs: positions, segments, RoPE and cache plan.
          kv: cached keys and values, None without a cache.
          layer: [] int32, which of the R repeats this is.
        """
        config, constrain = self.config, self.execution.constrain
        q, k, v = self._projected(x)
        rotate_query, rotate_key = self._rotated(q, "q"), self._rotated(k, "k")
        kv_axes = ("batch", "length", "activation_kv_heads", None)
        k = constrain(rotate_key(inputs.cos, inputs.sin), kv_axes)
        v = constrain(v, kv_axes)
        if inputs.append is not None and kv is not None:
            k, cached_k = cache.attended(kv[0], layer, inputs.append, k, keys=True)  # [B, S', K, H]
            v, cached_v = cache.attended(kv[1], layer, inputs.append, v, keys=False)
            kv = (cached_k, cached_v)
        attend = self._attend_in_parts if inputs.chunk_parts else self._attend
        out = constrain(attend(rotate_query, k, v, inputs), ("batch", "length", "activation_heads", None))
        heads, axes = (config.q_heads, config.head_dim), ("q_heads", "head_dim", "embed")
        return Linear(heads, (self.model_dim,), axes, self.execution.precision, self.init_std, name="o")(out), kv

    def _attend(self, rotate_query: Callable[[Array, Array], Array], k: Array, v: Array, inputs: BlockInputs) -> Array:
        """[B, T, N, H]: queries over all the keys that the window lets them see."""
        config, append = self.config, inputs.append
        q = self.execution.constrain(rotate_query(inputs.cos, inputs.sin), ("batch", "length", "activation_heads", None))
        cached: dict[str, Any] = {}
        if append is not None:
            cached = {"kv_positions": append.positions, "kv_segment_ids": append.segment_ids, "implementation": _implementation(q)}
        return self.execution.attention(
            q,
            k,
            v,
            positions=inputs.positions,
            segment_ids=inputs.segment_ids,
            window=config.window,
            soft_cap=config.soft_cap,
            scale=_scale(config),
            **cached,
        )

    def _attend_in_parts(self, rotate_query: Callable[[Array, Array], Array], k: Array, v: Array, inputs: BlockInputs) -> Array:
        """[B, T, N, H]: dual chunk attention."""
        config, append = self.config, inputs.append
        kv_segment_ids = inputs.segment_ids if append is None else append.segment_ids
        queries = [
            self.execution.constrain(rotate_query(part.cos, part.sin), ("batch", "length", "activation_heads", None))
            for part in inputs.chunk_parts
        ]
        found = [
            self.execution.attention_with_lse(
                q,
                k,
                v,
                positions=part.positions,
                segment_ids=inputs.segment_ids,
                kv_positions=part.kv_positions,
                kv_segment_ids=kv_segment_ids,
                window=part.window,
                soft_cap=config.soft_cap,
                scale=_scale(config),
                implementation=None if append is None else _implementation(q),
            )
            for q, part in zip(queries, inputs.chunk_parts, strict=True)
        ]
        return merge_parts(found)[0]

    def _projected(self, x: Array) -> list[Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H] of x [B, T, D]; unstacked parameters may hold one matrix for all."""
        heads = (self.config.q_heads, self.config.kv_heads, self.config.kv_heads)
        if self.has_variable("params", "qkv"):
            return jnp.split(self._projection("qkv", sum(heads))(x), (heads[0], heads[0] + heads[1]), axis=-2)
        return [self._projection(name, count)(x) for name, count in zip("qkv", heads, strict=True)]

    def _projection(self, name: str, heads: int) -> Linear:
        axis = "q_heads" if name == "q" else "kv_heads"
        shape = (heads, self.config.head_dim)
        axes = ("embed", axis, "head_dim")
        return Linear((self.model_dim,), shape, axes, self.execution.precision, self.init_std, self.config.qkv_bias, name=name)

    def _rotated(self, y: Array, name: str) -> Callable[[Array, Array], Array]:
        """(cos, sin) -> the queries or keys y, [B, T, heads, H], under RoPE and QK-norm in the configured order."""
        config = self.config
        if config.qk_norm is None:
            return lambda cos, sin: rope.rotate(y, cos, sin)
        norm = RMSNorm(config.qk_norm, "head_dim", self.execution.precision, name=f"{name}_norm")
        if config.qk_norm_before_rope:
            normed = norm(y)
            return lambda cos, sin: rope.rotate(normed, cos, sin)
        return lambda cos, sin: norm(rope.rotate(y, cos, sin))


def _scale(config: AttentionConfig) -> float:
    """Multiplier of q.k."""
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    return scale if config.dual_chunk is None else scale * dual_chunk.temperature(config.dual_chunk)


def _implementation(q: Array) -> str | None:
    """How queries [B, T, N, H] attend to a cache, whose empty entries are finite; None = as the kernel chooses."""
    return "decode" if q.shape[1] < MIN_CHUNKED_LENGTH else None
