"""What a decoder is: frozen dataclasses, and nothing that runs. A family is a value of these."""

import dataclasses
from collections.abc import Callable

from lmx.core.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMSNorm: `x * rsqrt(mean(x^2) + eps) * gain`, computed in float32.

    Attributes:
      eps: added to the mean square.
      unit_offset: gain is `1 + w` with w starting at 0 (Gemma), else w starting at 1.
    """

    eps: float
    unit_offset: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling: long wavelengths divided by `factor`, short ones kept, a linear blend between."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (Chen et al., 2023, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1: it divides the frequencies")


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN: slow frequencies divided by `factor`, fast ones kept, a ramp between, and a temperature on the scores.

    Attributes:
      factor: s = target length / original length, at least 1.
      original_length: L0, the trained length.
      beta_fast: pairs that turn more often than this within L0 are kept.
      beta_slow: pairs that turn less often than this are divided.
      attention_factor: a, the multiplier of cosine and sine (so scores carry a^2); None = 0.1 ln(s) + 1.
      truncate: round the ends of the ramp outwards to whole pairs.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1: it divides the frequencies")
        if not self.beta_fast > self.beta_slow > 0:
            raise ValueError(f"beta_fast={self.beta_fast} must exceed beta_slow={self.beta_slow}, and both 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding, half-split pairs (i, i + H/2), angles in float32."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualChunk:
    """Dual chunk attention: no query and key ever stand further apart than in training, at any length (for inference).

    Attributes:
      window: c, the trained length; relative positions stay below it.
      chunk_size: s < c; positions up to c - s apart stay exact.
      clamp_offset: 0 clamps at c - 1 as the paper does, 1 at c as its published code does.
      length_factor: target length / trained length; scores carry (0.1 ln(length_factor) + 1)^2. 1 = no temperature.

    Reference: An et al. (2024), arXiv:2402.17463.
    """

    window: int
    chunk_size: int
    clamp_offset: int = 0
    length_factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.chunk_size < self.window:
            raise ValueError(f"chunk_size={self.chunk_size} must lie in 1..{self.window - 1}, below the trained window")
        if self.clamp_offset not in (0, 1):
            raise ValueError(f"clamp_offset={self.clamp_offset} must be 0 (the paper) or 1 (its code)")
        if self.length_factor < 1:
            raise ValueError(f"length_factor={self.length_factor} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention.

    Attributes:
      q_heads: N, a multiple of kv_heads.
      kv_heads: K.
      head_dim: H, even.
      rope: rotary embedding.
      window: number of visible keys, the query's own included; None = all earlier keys.
      soft_cap: c of `c * tanh(s / c)` on the scaled scores, before masking; None = off.
      qkv_bias: biases on the q, k and v projections.
      qk_norm: RMSNorm over H of q and k, one gain for all heads; None = off.
      qk_norm_before_rope: norm q and k before RoPE instead of after it. AFM norms after; with a constant gain the orders agree.
      scale: multiplier of q.k; None = head_dim ** -0.5.
      dual_chunk: attend by chunks beyond the trained length; None = plain.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig
    window: int | None = None
    soft_cap: float | None = None
    qkv_bias: bool = False
    qk_norm: NormConfig | None = None
    qk_norm_before_rope: bool = False
    scale: float | None = None
    dual_chunk: DualChunk | None = None

    def __post_init__(self) -> None:
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads={self.q_heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 (the query's own key), or None for no window")
        if self.window is not None and self.dual_chunk is not None:
            raise ValueError(f"window={self.window} and dual_chunk exclude each other: dual chunk attention sees all earlier keys")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FFNConfig:
    """Gated FFN: `down(activation(gate(x)) * up(x))`.

    Attributes:
      ffn_dim: F, width of gate and of up each.
      activation: elementwise function, `silu` (SwiGLU) or `gelu_tanh` (GeGLU) of `lmx.model.activation`.
    """

    ffn_dim: int
    activation: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Dropless mixture of experts with an optional shared expert behind a sigmoid gate (Qwen2-MoE).

    Attributes:
      num_experts: E routed experts.
      experts_per_token: k, routed experts active for a token.
      expert: shape of one routed expert.
      shared: shape of the shared expert, None = no shared expert.
      normalize_weights: divide the k kept router weights by their sum.
    """

    num_experts: int
    experts_per_token: int
    expert: FFNConfig
    shared: FFNConfig | None = None
    normalize_weights: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token} must lie in 1..num_experts={self.num_experts}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One decoder layer: pre-norm residual branches, each with an optional norm on its output (Gemma 2)."""

    attention: AttentionConfig
    ffn: FFNConfig | MoEConfig
    norm: NormConfig
    post_norms: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiedHead:
    """Logits from the embedding table itself; `soft_cap` as in `c * tanh(x / c)`."""

    soft_cap: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Logits from an output table [V, D] of its own."""

    soft_cap: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarHead:
    """One number a token from a [1, D] row: reward models and value functions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer.

    Attributes:
      vocab_size: V, rows of the embedding table (padding rows included).
      model_dim: D.
      num_layers: L, a multiple of `len(layer_pattern)`.
      layer_pattern: blocks that repeat over the depth; layer i is `layer_pattern[i % len(layer_pattern)]`.
      final_norm: norm before the head.
      head: what turns hidden states into outputs.
      max_length: longest sequence the model is meant for, in tokens.
      embedding_scale: multiply embeddings by sqrt(D), rounded to the activation dtype (Gemma).
      init_std: standard deviation of the weights at init; None = fan-in scaling (embedding 1/sqrt(D)).
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    layer_pattern: tuple[BlockConfig, ...]
    final_norm: NormConfig
    head: TiedHead | LinearHead | ScalarHead
    max_length: int
    embedding_scale: bool = False
    init_std: float | None = None

    def __post_init__(self) -> None:
        if not self.layer_pattern or self.num_layers < 1 or self.num_layers % len(self.layer_pattern):
            raise ValueError(
                f"num_layers={self.num_layers} must be a positive multiple of the layer pattern's length {len(self.layer_pattern)}"
            )
        experts = {block.ffn.num_experts for block in self.layer_pattern if isinstance(block.ffn, MoEConfig)}
        if len(experts) > 1:
            raise ValueError(f"MoE layers of one model must have the same number of experts, but the pattern has {sorted(experts)}")

    @property
    def num_repeats(self) -> int:
        """R, how often the layer pattern repeats over the depth."""
        return self.num_layers // len(self.layer_pattern)
