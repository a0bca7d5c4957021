"""Llama 3.1: dense, untied, SwiGLU, RoPE base 500,000 with frequency scaling.

Sources: Grattafiori et al. (2024), arXiv:2407.21783, Table 3; meta-llama/llama-models for the FFN widths, 128,256 table rows
(128,000 BPE + 256 special), eps and the scaling constants. Some of the first public 405B checkpoints carry each KV head twice
(16 of them, for 16-way tensor parallelism); the architecture has 8. Initialisation is not published: fan-in scaling here.
"""

from lmx.model.activation import silu
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    Llama3Scaling,
    NormConfig,
    RopeConfig,
)


def llama31_8b() -> DecoderConfig:
    """8,030,261,248 parameters."""
    return decoder(num_layers=32, model_dim=4_096, q_heads=32, ffn_dim=14_336)


def llama31_70b() -> DecoderConfig:
    """70,553,706,496 parameters."""
    return decoder(num_layers=80, model_dim=8_192, q_heads=64, ffn_dim=28_672)


def llama31_405b() -> DecoderConfig:
    """405,853,388,800 parameters; 126 layers are 128 less one on each of the first and last pipeline stages."""
    return decoder(num_layers=126, model_dim=16_384, q_heads=128, ffn_dim=53_248)


def decoder(
    *,
    num_layers: int,
    model_dim: int,
    q_heads: int,
    ffn_dim: int,
    kv_heads: int = 8,
    head_dim: int = 128,
    vocab_size: int = 128_256,
    max_length: int = 131_072,
    rope_theta: float = 500_000.0,
    scaling: Llama3Scaling | None = Llama3Scaling(factor=8.0, original_length=8_192),  # noqa: B008 (frozen)
) -> DecoderConfig:
    """A decoder of the Llama 3.1 family; `scaling=None` is Llama 3 before its context was lengthened."""
    norm = NormConfig(eps=1e-5)
    attention = AttentionConfig(
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, rope=RopeConfig(theta=rope_theta, scaling=scaling)
    )
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=ffn_dim, activation=silu), norm=norm)
    return DecoderConfig(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=(block,),
        final_norm=norm,
        head=LinearHead(),
        max_length=max_length,
    )
