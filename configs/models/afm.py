"""AFM (Apple foundation models): QK-norm after RoPE, SwiGLU, tied embedding, no biases.

Sources: Gunter et al. (2024), arXiv:2407.21075, as far as it publishes shapes; the rest from apple/axlearn's "honeycrisp" family,
whose 3B member has the AFM-on-device shape and the report's optimizer constants but is never called AFM there, which is strong
evidence and not proof. axlearn pairs RoPE dimensions as (2i, 2i + 1), lmx as (i, i + H / 2); there are no public weights, so the
pairing is free. Weights start with variance 1 / fan-in and the embedding with 1 / D.
"""

from lmx.model.activation import silu
from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, NormConfig, RopeConfig, TiedHead

LENGTHENED_ROPE_THETA = 6_315_089.0  # of the context-lengthening stage, trained at 32,768 tokens


def afm_on_device(*, rope_theta: float = 500_000.0, max_length: int = 32_768) -> DecoderConfig:
    """2,737,739,264 parameters.

    The FFN width, 8064, is honeycrisp-3B's; the report gives none. The core stage trains at 4,096 tokens, the continued one at
    8,192, and the last at 32,768 with `LENGTHENED_ROPE_THETA`.
    """
    return decoder(num_layers=26, model_dim=3_072, q_heads=24, ffn_dim=8_064, rope_theta=rope_theta, max_length=max_length)


def afm_parent(*, ffn_dim: int = 24_064) -> DecoderConfig:
    """The 6.4B model that AFM-on-device is pruned from: 6,571,595,264 parameters, 6,420,600,320 without the embedding.

    Only the FFN is pruned, so all else is as on the device. The width is our solution of "6.4B" without the embedding, as the
    report's Table 1 counts; 23,296 would make it 6.4B in total.
    """
    return decoder(num_layers=26, model_dim=3_072, q_heads=24, ffn_dim=ffn_dim, max_length=4_096)


def afm_server_proxy() -> DecoderConfig:
    """A stand-in for AFM-server, whose size is not published: 55,181,602,816 parameters.

    Known are 8 KV heads and a vocabulary of about 100k. A width of 8192 follows from learning rates of about 0.1 times the
    768-wide base under muP-simple; the FFN ratio is the on-device model's; depth is our choice.
    """
    return decoder(num_layers=80, model_dim=8_192, q_heads=64, ffn_dim=21_504, vocab_size=100_352, max_length=32_768)


def honeycrisp_85m() -> DecoderConfig:
    """The 768-wide base of muP-simple, 122,704,128 parameters: 84,955,392 without the embedding."""
    return decoder(num_layers=12, model_dim=768, q_heads=12, kv_heads=6, head_dim=64, ffn_dim=2_304, max_length=4_096)


def decoder(
    *,
    num_layers: int,
    model_dim: int,
    q_heads: int,
    ffn_dim: int,
    max_length: int,
    kv_heads: int = 8,
    head_dim: int = 128,
    vocab_size: int = 49_152,
    rope_theta: float = 500_000.0,
) -> DecoderConfig:
    """A decoder of the AFM family."""
    norm = NormConfig(eps=1e-5)
    attention = AttentionConfig(
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, rope=RopeConfig(theta=rope_theta), qk_norm=norm
    )
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=ffn_dim, activation=silu), norm=norm)
    return DecoderConfig(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=(block,),
        final_norm=norm,
        head=TiedHead(),
        max_length=max_length,
    )
