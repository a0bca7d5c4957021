"""A CPU-sized member of every family, with all of its mechanisms at work: a few hundred thousand parameters by default.

RoPE bases are matched to the length: the longest wavelength stands in the same ratio to `max_length` as in the full-size model
to its trained length. A literal base of 10,000 or more would hide every effect of RoPE at a few hundred tokens.
All start with fan-in scaling: the published 0.02 of Qwen2 is too small for narrow models.
"""

import math

from configs.models import afm as afm_family
from configs.models import gemma2 as gemma2_family
from configs.models import llama3 as llama3_family
from configs.models import qwen2 as qwen2_family
from lmx.model import rope
from lmx.model.activation import silu
from lmx.model.config import DecoderConfig, FFNConfig, Llama3Scaling, MoEConfig


def qwen2(
    vocab_size: int = 256,
    *,
    model_dim: int = 64,
    num_layers: int = 4,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn_dim: int = 176,
    max_length: int = 256,
    tied: bool = True,
) -> DecoderConfig:
    """Dense Qwen2: QKV biases, tied or untied."""
    return qwen2_family.decoder(
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=FFNConfig(ffn_dim=ffn_dim, activation=silu),
        vocab_size=vocab_size,
        tied=tied,
        rope_theta=matched_theta(1e6, trained_length=32_768, full_head_dim=128, length=max_length, head_dim=head_dim),
        max_length=max_length,
        init_std=None,
    )


def qwen2_moe(
    vocab_size: int = 256,
    *,
    model_dim: int = 64,
    num_layers: int = 4,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn_dim: int = 48,
    num_experts: int = 8,
    experts_per_token: int = 2,
    max_length: int = 256,
) -> DecoderConfig:
    """Qwen2 with routed experts of width `ffn_dim` and a shared one as wide as the active ones together, untied."""
    moe = MoEConfig(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        expert=FFNConfig(ffn_dim=ffn_dim, activation=silu),
        shared=FFNConfig(ffn_dim=ffn_dim * experts_per_token, activation=silu),
    )
    return qwen2_family.decoder(
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=moe,
        vocab_size=vocab_size,
        tied=False,
        rope_theta=matched_theta(1e6, trained_length=32_768, full_head_dim=128, length=max_length, head_dim=head_dim),
        max_length=max_length,
        init_std=None,
    )


def afm(
    vocab_size: int = 256,
    *,
    model_dim: int = 64,
    num_layers: int = 4,
    q_heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn_dim: int = 176,
    max_length: int = 256,
) -> DecoderConfig:
    """AFM at the base of its core stage: QK-norm after RoPE, three query heads a KV head."""
    return afm_family.decoder(
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        rope_theta=matched_theta(5e5, trained_length=4_096, full_head_dim=128, length=max_length, head_dim=head_dim),
        max_length=max_length,
    )


def gemma2(
    vocab_size: int = 256,
    *,
    model_dim: int = 64,
    num_layers: int = 4,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    ffn_dim: int = 176,
    window: int = 64,
    max_length: int = 256,
) -> DecoderConfig:
    """Gemma 2: local and global layers, both soft caps, four norms a layer, heads together wider than the model."""
    return gemma2_family.decoder(
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        scale=(model_dim / q_heads) ** -0.5,  # as in the 27B, where it is not the head dim's
        window=window,
        max_length=max_length,
        rope_theta=matched_theta(1e4, trained_length=8_192, full_head_dim=256, length=max_length, head_dim=head_dim),
    )


def llama3(
    vocab_size: int = 256,
    *,
    model_dim: int = 64,
    num_layers: int = 4,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn_dim: int = 176,
    max_length: int = 256,
    lengthening: int = 4,
) -> DecoderConfig:
    """Llama 3.1: untied, RoPE scaling on, `max_length / lengthening` as the length before lengthening."""
    original_length = max(1, max_length // lengthening)
    return llama3_family.decoder(
        num_layers=num_layers,
        model_dim=model_dim,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        max_length=max_length,
        rope_theta=matched_theta(5e5, trained_length=8_192, full_head_dim=128, length=original_length, head_dim=head_dim),
        scaling=Llama3Scaling(factor=8.0, original_length=original_length),
    )


def matched_theta(theta: float, *, trained_length: int, full_head_dim: int, length: int, head_dim: int) -> float:
    """RoPE base whose longest wavelength is to `length` what that of a full-size model is to its trained length.

    The longest wavelength of base b and head dim h is `2 pi b ** ((h - 2) / h)`; the ratio to the length is kept. Heads of two
    dimensions have one wavelength whatever the base.

    Args:
      theta: the full-size model's base.
      trained_length: its trained length in tokens.
      full_head_dim: its head dim.
      length: tokens of the small model, > 2 pi / ratio.
      head_dim: the small model's, > 2.
    """
    ratio = 2 * math.pi * theta ** ((full_head_dim - 2) / full_head_dim) / trained_length
    return rope.theta_matched(ratio, length=length, head_dim=head_dim)
