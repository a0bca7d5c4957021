"""Gemma 2: alternating windows, soft caps, norms on both sides of each branch, scaled and tied embeddings."""

from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.families.parts import (
    ACTIVATIONS,
    ATTENTION,
    FFN,
    FULL,
    MODEL,
    SLIDING,
    Family,
    dense_ffn_dim,
    read_attention,
    read_decoder,
    read_layer_types,
    require,
    write_decoder,
    write_windows,
)
from lmx.convert.rules import Entry
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, LinearHead, NormConfig, TiedHead

NAME = "gemma2"
NORMS = (
    Entry("attention_norm/gain", "model.layers.{layer}.input_layernorm.weight"),
    Entry("attention_post_norm/gain", "model.layers.{layer}.post_attention_layernorm.weight"),
    Entry("ffn_norm/gain", "model.layers.{layer}.pre_feedforward_layernorm.weight"),
    Entry("ffn_post_norm/gain", "model.layers.{layer}.post_feedforward_layernorm.weight"),
)


def read(fields: Fields) -> DecoderConfig:
    """The model that a `config.json` describes."""
    fields.refuse("attention_bias", "lmx has no bias on the attention's output")
    fields.refuse("use_bidirectional_attention", "lmx attends to earlier tokens only")
    windowed = read_layer_types(fields, lambda layer: layer % 2 == 0)
    window = fields.size("sliding_window", fields.size("sliding_window_size", 4096))
    activation = ACTIVATIONS[fields.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS)]
    ffn = FFNConfig(ffn_dim=fields.size("intermediate_size"), activation=activation)
    norm = NormConfig(eps=fields.number("rms_norm_eps", 1e-6), unit_offset=True)
    scale = fields.number("query_pre_attn_scalar", 256) ** -0.5
    attention_cap, logit_cap = _cap(fields, "attn_logit_softcapping", 50.0), _cap(fields, "final_logit_softcapping", 30.0)
    kinds = {
        sliding: BlockConfig(
            attention=read_attention(fields, head_dim=256, window=window if sliding else None, soft_cap=attention_cap, scale=scale),
            ffn=ffn,
            norm=norm,
            post_norms=True,
        )
        for sliding in (True, False)
    }
    blocks = [kinds[sliding] for sliding in windowed]
    return read_decoder(fields, blocks, tied=True, soft_cap=logit_cap, unit_offset=True, embedding_scale=True)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json`."""
    fields = write_decoder(config, NAME, activation="hidden_activation", default_scale=False)
    attention = config.layer_pattern[0].attention
    require(NAME, not attention.qkv_bias, "it has biases on queries, keys and values")
    require(NAME, all(block.post_norms for block in config.layer_pattern), "it has no norms on the outputs of its branches")
    require(NAME, config.final_norm.unit_offset, "its norms have gains w, not 1 + w")
    require(NAME, config.embedding_scale, "its embeddings are not scaled by sqrt(model_dim)")
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    scalar = round(scale**-2)
    require(NAME, scalar >= 1 and scalar**-0.5 == scale, f"its scores are scaled by {scale}, not by a whole number ** -0.5")
    windowed, window = write_windows(config, NAME)
    return {
        **fields,
        "hidden_act": fields["hidden_activation"],
        "intermediate_size": dense_ffn_dim(config, NAME),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": attention.soft_cap,
        "final_logit_softcapping": config.head.soft_cap if isinstance(config.head, TiedHead | LinearHead) else None,
        "sliding_window": 4096 if window is None else window,
        "layer_types": [SLIDING if sliding else FULL for sliding in windowed],
        "attention_bias": False,
    }


def _cap(fields: Fields, name: str, default: float) -> float | None:
    """A soft cap; null is off, and an absent field is the family's default."""
    return fields.optional_number(name) if name in fields.values else fields.number(name, default)


GEMMA2 = Family(
    name=NAME,
    architecture="Gemma2ForCausalLM",
    table=(*MODEL, *ATTENTION, *NORMS, *FFN),
    read=read,
    write=write,
    harmless=frozenset({"hidden_act"}),
)
