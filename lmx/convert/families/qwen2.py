"""Qwen2 and Qwen2.5: dense, biases on queries, keys and values, attention windows in some layers."""

from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.families.parts import (
    ACTIVATIONS,
    ATTENTION,
    FFN,
    FULL,
    MODEL,
    PRE_NORMS,
    QKV_BIAS,
    SLIDING,
    Family,
    dense_ffn_dim,
    plain_blocks,
    plain_head,
    read_attention,
    read_decoder,
    read_layer_types,
    require,
    write_decoder,
    write_windows,
)
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, NormConfig

NAME = "qwen2"
HARMLESS = frozenset({"max_window_layers", "sliding_window", "dual_chunk_attention_config", "sparse_attention_config"})
"""Windows count where `use_sliding_window` says so; dual chunk attention is a way to serve beyond the trained length."""


def read(fields: Fields) -> DecoderConfig:
    """The model that a `config.json` describes."""
    layers = fields.size("num_hidden_layers")
    window = fields.size("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first_windowed = fields.size("max_window_layers", 28, minimum=0)
    windowed = read_layer_types(fields, lambda layer: window is not None and layer >= first_windowed)
    if any(windowed) and window is None:
        fields.fail(f"gives layers the type {SLIDING} but use_sliding_window=false; make one of them agree with the other")
    activation = ACTIVATIONS[fields.choice("hidden_act", "silu", ACTIVATIONS)]
    ffn = FFNConfig(ffn_dim=fields.size("intermediate_size"), activation=activation)
    norm = NormConfig(eps=fields.number("rms_norm_eps", 1e-6))
    kinds = {
        sliding: BlockConfig(
            attention=read_attention(fields, qkv_bias=True, window=window if sliding else None), ffn=ffn, norm=norm
        )
        for sliding in (True, False)
    }
    return read_decoder(fields, [kinds[windowed[layer]] for layer in range(layers)], tied=False)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json`."""
    fields = write_decoder(config, NAME, activation="hidden_act")
    attention = config.layer_pattern[0].attention
    require(NAME, attention.qkv_bias, "it has no biases on queries, keys and values")
    require(NAME, attention.soft_cap is None, "its attention scores are capped")
    plain_blocks(config, NAME)
    plain_head(config, NAME)
    return {**fields, **window_fields(config, NAME), "intermediate_size": dense_ffn_dim(config, NAME)}


def window_fields(config: DecoderConfig, family: str) -> dict[str, Any]:
    """The fields that say which layers are windowed, for readers of `layer_types` and, where they can say it, for older ones."""
    windowed, window = write_windows(config, family)
    if window is None:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers}
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": windowed.index(True),
        "layer_types": [SLIDING if sliding else FULL for sliding in windowed],
    }


QWEN2 = Family(
    name=NAME,
    architecture="Qwen2ForCausalLM",
    table=(*MODEL, *ATTENTION, *QKV_BIAS, *PRE_NORMS, *FFN),
    read=read,
    write=write,
    harmless=HARMLESS,
)
