"""Qwen2: QKV biases, SwiGLU, RoPE base 1,000,000; one mixture of experts.

Sources: Yang et al. (2024), arXiv:2407.10671, Table 1; released config.json files for table rows (151,646 tokens padded to
151,936 or 152,064), eps, biases and initialisation; transformers' modeling_qwen2_moe.py for the router and the shared gate.
`max_length` is the trained length; released base configs also print 131,072, a deployment field.
"""

from lmx.model.activation import silu
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    MoEConfig,
    NormConfig,
    RopeConfig,
    TiedHead,
)


def qwen2_0_5b() -> DecoderConfig:
    """494,032,768 parameters, tied."""
    ffn = FFNConfig(ffn_dim=4_864, activation=silu)
    return decoder(num_layers=24, model_dim=896, q_heads=14, kv_heads=2, head_dim=64, ffn=ffn, vocab_size=151_936, tied=True)


def qwen2_1_5b() -> DecoderConfig:
    """1,543,714,304 parameters, tied."""
    ffn = FFNConfig(ffn_dim=8_960, activation=silu)
    return decoder(num_layers=28, model_dim=1_536, q_heads=12, kv_heads=2, head_dim=128, ffn=ffn, vocab_size=151_936, tied=True)


def qwen2_7b() -> DecoderConfig:
    """7,615,616,512 parameters."""
    ffn = FFNConfig(ffn_dim=18_944, activation=silu)
    return decoder(num_layers=28, model_dim=3_584, q_heads=28, kv_heads=4, head_dim=128, ffn=ffn, vocab_size=152_064, tied=False)


def qwen2_72b(*, eps: float = 1e-5) -> DecoderConfig:
    """72,706,203,648 parameters; eps is 1e-5 in the base model and 1e-6 in the instruct model."""
    ffn = FFNConfig(ffn_dim=29_568, activation=silu)
    return decoder(
        num_layers=80, model_dim=8_192, q_heads=64, kv_heads=8, head_dim=128, ffn=ffn, vocab_size=152_064, tied=False, eps=eps
    )


def qwen2_57b_a14b() -> DecoderConfig:
    """57,408,658,944 parameters, 14,249,270,784 of them active for a token (both embedding tables counted).

    Eight of 64 routed experts, their weights not renormalised; the report's 8 shared experts are one SwiGLU of width 8 x 2560
    in the released code, behind one sigmoid gate.
    """
    moe = MoEConfig(
        num_experts=64,
        experts_per_token=8,
        expert=FFNConfig(ffn_dim=2_560, activation=silu),
        shared=FFNConfig(ffn_dim=20_480, activation=silu),
    )
    return decoder(num_layers=28, model_dim=3_584, q_heads=28, kv_heads=4, head_dim=128, ffn=moe, vocab_size=151_936, tied=False)


def decoder(
    *,
    num_layers: int,
    model_dim: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: FFNConfig | MoEConfig,
    vocab_size: int,
    tied: bool,
    eps: float = 1e-6,
    rope_theta: float = 1_000_000.0,
    max_length: int = 32_768,
    init_std: float | None = 0.02,
) -> DecoderConfig:
    """A decoder of the Qwen2 family; `rope_theta` was 10,000 and `max_length` 4,096 before the long-context stage."""
    norm = NormConfig(eps=eps)
    attention = AttentionConfig(
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, rope=RopeConfig(theta=rope_theta), qkv_bias=True
    )
    return DecoderConfig(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=(BlockConfig(attention=attention, ffn=ffn, norm=norm),),
        final_norm=norm,
        head=TiedHead() if tied else LinearHead(),
        max_length=max_length,
        init_std=init_std,
    )
