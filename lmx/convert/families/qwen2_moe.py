"""Qwen1.5-MoE and Qwen2-57B-A14B: experts and a shared expert in some layers, an FFN in the others."""

from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.families.parts import (
    ACTIVATIONS,
    ATTENTION,
    FFN,
    MODEL,
    PRE_NORMS,
    QKV_BIAS,
    SLIDING,
    Family,
    only,
    plain_blocks,
    plain_head,
    read_attention,
    read_decoder,
    read_layer_types,
    require,
    write_decoder,
)
from lmx.convert.families.qwen2 import HARMLESS, window_fields
from lmx.convert.rules import LINEAR, Entry
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, MoEConfig, NormConfig

NAME = "qwen2_moe"
EXPERTS = (
    Entry("ffn/router/kernel", "model.layers.{layer}.mlp.gate.weight", LINEAR),
    Entry("ffn/experts/gate", "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight", LINEAR),
    Entry("ffn/experts/up", "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", LINEAR),
    Entry("ffn/experts/down", "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", LINEAR),
    Entry("ffn/shared/gate/kernel", "model.layers.{layer}.mlp.shared_expert.gate_proj.weight", LINEAR),
    Entry("ffn/shared/up/kernel", "model.layers.{layer}.mlp.shared_expert.up_proj.weight", LINEAR),
    Entry("ffn/shared/down/kernel", "model.layers.{layer}.mlp.shared_expert.down_proj.weight", LINEAR),
    Entry("ffn/shared_gate/kernel", "model.layers.{layer}.mlp.shared_expert_gate.weight", LINEAR),
)


def read(fields: Fields) -> DecoderConfig:
    """The model that a `config.json` describes."""
    layers = fields.size("num_hidden_layers")
    window = fields.size("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    last_windowed = fields.size("max_window_layers", 28, minimum=0)
    # Without layer_types, transformers 5 windows every other layer below max_window_layers in this family.
    windowed = read_layer_types(fields, lambda layer: window is not None and layer % 2 == 0 and layer < last_windowed)
    if any(windowed) and window is None:
        fields.fail(f"gives layers the type {SLIDING} but use_sliding_window=false; make one of them agree with the other")
    moe, dense = _experts(fields), _dense(fields)
    norm, bias = NormConfig(eps=fields.number("rms_norm_eps", 1e-6)), fields.flag("qkv_bias", True)
    sparse = _sparse_layers(fields, layers)
    blocks = {
        (slides, expert): BlockConfig(
            attention=read_attention(fields, qkv_bias=bias, window=window if slides else None),
            ffn=moe if expert and moe else dense,
            norm=norm,
        )
        for slides, expert in set(zip(windowed, sparse, strict=True))
    }
    return read_decoder(fields, [blocks[kind] for kind in zip(windowed, sparse, strict=True)], tied=False)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json`."""
    fields = write_decoder(config, NAME, activation="hidden_act")
    plain_blocks(config, NAME)
    plain_head(config, NAME)
    attention = config.layer_pattern[0].attention
    require(NAME, attention.soft_cap is None, "its attention scores are capped")
    ffns = [config.layer_pattern[layer % len(config.layer_pattern)].ffn for layer in range(config.num_layers)]
    experts = [ffn for ffn in ffns if isinstance(ffn, MoEConfig)]
    require(NAME, bool(experts), "it has no experts")
    moe = only(NAME, experts, "their experts")
    dense = {ffn.ffn_dim for ffn in ffns if isinstance(ffn, FFNConfig)}
    require(NAME, len(dense) <= 1, f"its layers without experts have the widths {sorted(dense)}")
    require(NAME, moe.shared is not None, "it has no shared expert")
    shared_dim = moe.shared.ffn_dim if moe.shared is not None else 0
    return {
        **fields,
        **window_fields(config, NAME),
        "qkv_bias": attention.qkv_bias,
        "intermediate_size": next(iter(dense), shared_dim),
        "moe_intermediate_size": moe.expert.ffn_dim,
        "shared_expert_intermediate_size": shared_dim,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "norm_topk_prob": moe.normalize_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, ffn in enumerate(ffns) if isinstance(ffn, FFNConfig)],
        "output_router_logits": False,
    }


def _experts(fields: Fields) -> MoEConfig | None:
    activation = ACTIVATIONS[fields.choice("hidden_act", "silu", ACTIVATIONS)]
    experts = fields.size("num_experts", 60, minimum=0)
    chosen, expert_dim = fields.size("num_experts_per_tok", 4), fields.size("moe_intermediate_size", 1408)
    shared_dim, normalize = fields.size("shared_expert_intermediate_size", 5632), fields.flag("norm_topk_prob", False)
    if experts == 0:
        return None
    return MoEConfig(
        num_experts=experts,
        experts_per_token=chosen,
        expert=FFNConfig(ffn_dim=expert_dim, activation=activation),
        shared=FFNConfig(ffn_dim=shared_dim, activation=activation),
        normalize_weights=normalize,
    )


def _dense(fields: Fields) -> FFNConfig:
    activation = ACTIVATIONS[fields.choice("hidden_act", "silu", ACTIVATIONS)]
    return FFNConfig(ffn_dim=fields.size("intermediate_size", 5632), activation=activation)


def _sparse_layers(fields: Fields, layers: int) -> list[bool]:
    """For each layer, whether it has experts."""
    dense = fields.raw("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        fields.fail(f"says mlp_only_layers={str(dense)[:80]}; a list of layer numbers was expected")
    step, experts = fields.size("decoder_sparse_step", 1), fields.size("num_experts", 60, minimum=0)
    return [experts > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]


QWEN2_MOE = Family(
    name=NAME,
    architecture="Qwen2MoeForCausalLM",
    table=(*MODEL, *ATTENTION, *QKV_BIAS, *PRE_NORMS, *FFN, *EXPERTS),
    read=read,
    write=write,
    harmless=HARMLESS,
)
