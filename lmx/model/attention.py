"""Grouped-query attention: projections, RoPE, QK-norm and the cache, around one call of the attention kernel."""

import dataclasses

import jax
from flax import linen as nn

from lmx.core.types import Array
from lmx.model import cache, rope
from lmx.model.config import AttentionConfig
from lmx.model.execution import Execution
from lmx.model.linear import Linear
from lmx.model.norm import RMSNorm

KV = tuple[Array, Array]  # keys and values of a LayerCache, [R, B, S, K, H] each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockInputs:
    """What a block reads besides its activations, the same at every repeat of the pattern.

    Attributes:
      positions: [B, T] int32.
      segment_ids: [B, T] int32.
      cos: [B, T, H / 2] float32, of this block's RoPE.
      sin: [B, T, H / 2] float32.
      append: how new tokens enter the cache; None = no cache, queries attend to the call's own tokens.
    """

    positions: Array
    segment_ids: Array
    cos: Array
    sin: Array
    append: cache.Append | None = None


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
        q = constrain(self._query_or_key(x, "q", config.q_heads, inputs), ("batch", "length", "activation_heads", None))
        k = constrain(self._query_or_key(x, "k", config.kv_heads, inputs), ("batch", "length", "activation_kv_heads", None))
        v = constrain(self._projection("v", config.kv_heads)(x), ("batch", "length", "activation_kv_heads", None))
        key_layout = {}
        if inputs.append is not None and kv is not None:
            k, cached_k = cache.attended(kv[0], layer, inputs.append, k)  # [B, S', K, H]
            v, cached_v = cache.attended(kv[1], layer, inputs.append, v)
            kv = (cached_k, cached_v)
            key_layout = {"kv_positions": inputs.append.positions, "kv_segment_ids": inputs.append.segment_ids}
        out = self.execution.attention(
            q,
            k,
            v,
            positions=inputs.positions,
            segment_ids=inputs.segment_ids,
            window=config.window,
            soft_cap=config.soft_cap,
            scale=config.head_dim**-0.5 if config.scale is None else config.scale,
            **key_layout,
        )  # [B, T, N, H]
        out = constrain(out, ("batch", "length", "activation_heads", None))
        heads, axes = (config.q_heads, config.head_dim), ("q_heads", "head_dim", "embed")
        return Linear(heads, (self.model_dim,), axes, self.execution.precision, self.init_std, name="o")(out), kv

    def _projection(self, name: str, heads: int) -> Linear:
        axis = "q_heads" if name == "q" else "kv_heads"
        shape = (heads, self.config.head_dim)
        axes = ("embed", axis, "head_dim")
        return Linear((self.model_dim,), shape, axes, self.execution.precision, self.init_std, self.config.qkv_bias, name=name)

    def _query_or_key(self, x: Array, name: str, heads: int, inputs: BlockInputs) -> Array:
        """Projection, RoPE and QK-norm in the configured order, [B, T, heads, H]."""
        y, config = self._projection(name, heads)(x), self.config
        if config.qk_norm is None:
            return rope.rotate(y, inputs.cos, inputs.sin)
        norm = RMSNorm(config.qk_norm, "head_dim", self.execution.precision, name=f"{name}_norm")
        if config.qk_norm_before_rope:
            return rope.rotate(norm(y), inputs.cos, inputs.sin)
        return norm(rope.rotate(y, inputs.cos, inputs.sin))
