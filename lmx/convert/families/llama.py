"""Llama (2, 3, 3.1 and relatives): dense, no biases, full attention."""

from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.families.parts import (
    ACTIVATIONS,
    ATTENTION,
    FFN,
    MODEL,
    PRE_NORMS,
    Family,
    dense_ffn_dim,
    plain_blocks,
    plain_head,
    read_attention,
    read_decoder,
    require,
    write_decoder,
    write_windows,
)
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, NormConfig

NAME = "llama"


def read(fields: Fields) -> DecoderConfig:
    """The model that a `config.json` describes."""
    fields.refuse("attention_bias", "lmx has no bias on the attention's output")
    fields.refuse("mlp_bias", "lmx has no biases in the FFN")
    ffn = FFNConfig(
        ffn_dim=fields.size("intermediate_size"), activation=ACTIVATIONS[fields.choice("hidden_act", "silu", ACTIVATIONS)]
    )
    block = BlockConfig(attention=read_attention(fields), ffn=ffn, norm=NormConfig(eps=fields.number("rms_norm_eps", 1e-6)))
    return read_decoder(fields, [block] * fields.size("num_hidden_layers"), tied=False)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json`."""
    fields = write_decoder(config, NAME, activation="hidden_act")
    attention = config.layer_pattern[0].attention
    require(NAME, not attention.qkv_bias, "it has biases on queries, keys and values")
    require(NAME, attention.soft_cap is None, "its attention scores are capped")
    require(NAME, write_windows(config, NAME)[1] is None, "it has attention windows")
    plain_blocks(config, NAME)
    plain_head(config, NAME)
    return {**fields, "intermediate_size": dense_ffn_dim(config, NAME), "attention_bias": False, "mlp_bias": False}


LLAMA = Family(name=NAME, architecture="LlamaForCausalLM", table=(*MODEL, *ATTENTION, *PRE_NORMS, *FFN), read=read, write=write)
