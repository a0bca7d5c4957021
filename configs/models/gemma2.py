"""Gemma 2: alternating local and global layers, soft caps, pre- and post-norms, GeGLU, tied and scaled embedding.

Sources: Gemma Team (2024), arXiv:2408.00118, Tables 1 and 2; google-deepmind/gemma for the widths of one FFN branch (the report
prints gate and up together), query scales, layer order (layer 0 is local) and norms. The tokenizer has 256,000 entries; Google's
checkpoints hold tables of 256,128 rows, Hugging Face's 256,000. Initialisation is not published: fan-in scaling here.
"""

from lmx.model.activation import gelu_tanh
from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, NormConfig, RopeConfig, TiedHead


def gemma2_2b(*, vocab_size: int = 256_000) -> DecoderConfig:
    """2,614,341,888 parameters at 256,000 rows; 2,614,636,800 at 256,128."""
    return decoder(
        num_layers=26, model_dim=2_304, q_heads=8, kv_heads=4, head_dim=256, ffn_dim=9_216, vocab_size=vocab_size, scale=256**-0.5
    )


def gemma2_9b(*, vocab_size: int = 256_000) -> DecoderConfig:
    """9,241,705,984 parameters at 256,000 rows; 9,242,164,736 at 256,128.

    The query scale is 256 ** -0.5; old copies of the Hugging Face checkpoint say 224 by mistake.
    """
    return decoder(
        num_layers=42, model_dim=3_584, q_heads=16, kv_heads=8, head_dim=256, ffn_dim=14_336, vocab_size=vocab_size, scale=256**-0.5
    )


def gemma2_27b(*, vocab_size: int = 256_000) -> DecoderConfig:
    """27,227,128,320 parameters at 256,000 rows; 27,227,718,144 at 256,128. Its query scale is (4608 / 32) ** -0.5."""
    return decoder(
        num_layers=46,
        model_dim=4_608,
        q_heads=32,
        kv_heads=16,
        head_dim=128,
        ffn_dim=36_864,
        vocab_size=vocab_size,
        scale=144**-0.5,
    )


def decoder(
    *,
    num_layers: int,
    model_dim: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    ffn_dim: int,
    vocab_size: int,
    scale: float,
    window: int = 4_096,
    max_length: int = 8_192,
    rope_theta: float = 10_000.0,
) -> DecoderConfig:
    """A decoder of the Gemma 2 family, layer 0 local."""
    norm = NormConfig(eps=1e-6, unit_offset=True)

    def block(window: int | None) -> BlockConfig:
        attention = AttentionConfig(
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=RopeConfig(theta=rope_theta),
            window=window,
            soft_cap=50.0,
            scale=scale,
        )
        return BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=ffn_dim, activation=gelu_tanh), norm=norm, post_norms=True)

    return DecoderConfig(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=(block(window), block(None)),
        final_norm=norm,
        head=TiedHead(soft_cap=30.0),
        max_length=max_length,
        embedding_scale=True,
    )
