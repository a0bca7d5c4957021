"""What the families share: names of tensors, pieces of a config read and written, layer patterns."""

import dataclasses
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lmx.convert.families.fields import Fields
from lmx.convert.families.rope import read_rope, write_rope
from lmx.convert.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Entry
from lmx.convert.source import ConversionError
from lmx.core.types import Array
from lmx.model.activation import gelu_tanh, silu
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    MoEConfig,
    NormConfig,
    ScalarHead,
    TiedHead,
)

Item = TypeVar("Item", bound=Hashable)
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": silu,
    "swish": silu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
}
SLIDING, FULL = "sliding_attention", "full_attention"
ROTARY_BUFFERS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
"""Buffers that old versions of transformers saved; the config determines them."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MODEL = (
    Entry("embed/table", EMBEDDING),
    Entry("final_norm/gain", "model.norm.weight"),
    Entry("head/table", HEAD),
)
ATTENTION = (
    Entry("attention/q/kernel", "model.layers.{layer}.self_attn.q_proj.weight", LINEAR),
    Entry("attention/k/kernel", "model.layers.{layer}.self_attn.k_proj.weight", LINEAR),
    Entry("attention/v/kernel", "model.layers.{layer}.self_attn.v_proj.weight", LINEAR),
    Entry("attention/o/kernel", "model.layers.{layer}.self_attn.o_proj.weight", LINEAR_FROM_HEADS),
)
QKV_BIAS = (
    Entry("attention/q/bias", "model.layers.{layer}.self_attn.q_proj.bias", FLAT),
    Entry("attention/k/bias", "model.layers.{layer}.self_attn.k_proj.bias", FLAT),
    Entry("attention/v/bias", "model.layers.{layer}.self_attn.v_proj.bias", FLAT),
)
FFN = (
    Entry("ffn/gate/kernel", "model.layers.{layer}.mlp.gate_proj.weight", LINEAR),
    Entry("ffn/up/kernel", "model.layers.{layer}.mlp.up_proj.weight", LINEAR),
    Entry("ffn/down/kernel", "model.layers.{layer}.mlp.down_proj.weight", LINEAR),
)
PRE_NORMS = (
    Entry("attention_norm/gain", "model.layers.{layer}.input_layernorm.weight"),
    Entry("ffn_norm/gain", "model.layers.{layer}.post_attention_layernorm.weight"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models in Hugging Face's format.

    Attributes:
      name: its `model_type`.
      architecture: name of its class in transformers.
      table: names of its tensors.
      read: fields of a `config.json` -> model; raises ConversionError for what lmx does not implement.
      write: model -> fields that say what it computes; raises ConversionError for a model that the family cannot hold.
      harmless: fields of its config that change nothing.
    """

    name: str
    architecture: str
    table: tuple[Entry, ...]
    read: Callable[[Fields], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    harmless: frozenset[str] = frozenset()


# ----- reading


def read_attention(fields: Fields, *, head_dim: int | None = None, **variants: Any) -> AttentionConfig:
    """Heads and RoPE; `head_dim` is the family's default, None = hidden_size / num_attention_heads."""
    q_heads = fields.size("num_attention_heads")
    hidden = fields.size("hidden_size")
    if not fields.has("head_dim") and head_dim is None and hidden % q_heads:
        fields.fail(f"says hidden_size={hidden} and num_attention_heads={q_heads}, which does not divide it, and no head_dim")
    return AttentionConfig(
        q_heads=q_heads,
        kv_heads=fields.size("num_key_value_heads", q_heads),
        head_dim=fields.size("head_dim", head_dim or hidden // q_heads),
        rope=read_rope(fields, fields.size("max_position_embeddings")),
        **variants,
    )


def read_layer_types(fields: Fields, default: Callable[[int], bool]) -> list[bool]:
    """For each layer, whether its attention is windowed: as `layer_types` says, else as `default(layer)` does."""
    layers = fields.size("num_hidden_layers")
    types = fields.raw("layer_types")
    if types is None:
        return [default(layer) for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        fields.fail(f"must give layer_types as a list of num_hidden_layers={layers} names")
    for kind in types:
        if kind not in (SLIDING, FULL):
            fields.fail(f"has the layer type {str(kind)[:60]!r}; lmx implements {SLIDING} and {FULL}")
    return [kind == SLIDING for kind in types]


def read_decoder(
    fields: Fields,
    blocks: Sequence[BlockConfig],
    *,
    tied: bool,
    soft_cap: float | None = None,
    unit_offset: bool = False,
    embedding_scale: bool = False,
) -> DecoderConfig:
    """The model around the layers; `tied` is the family's default of tie_word_embeddings."""
    fields.refuse("is_encoder_decoder", "lmx has decoders only")
    fields.refuse("add_cross_attention", "lmx has no cross-attention")
    tied = fields.flag("tie_word_embeddings", tied)
    return DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        model_dim=fields.size("hidden_size"),
        num_layers=len(blocks),
        layer_pattern=shortest_pattern(blocks),
        final_norm=NormConfig(eps=fields.number("rms_norm_eps", 1e-6), unit_offset=unit_offset),
        head=TiedHead(soft_cap=soft_cap) if tied else LinearHead(soft_cap=soft_cap),
        max_length=fields.size("max_position_embeddings"),
        embedding_scale=embedding_scale,
        init_std=fields.number("initializer_range", 0.02),
    )


def shortest_pattern(blocks: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The shortest sequence of layers whose repetition gives all of them."""
    count = len(blocks)
    for period in range(1, count + 1):
        if count % period == 0 and all(blocks[layer] == blocks[layer % period] for layer in range(period, count)):
            return tuple(blocks[:period])
    return tuple(blocks)


def check_sizes(config: DecoderConfig, shapes: Collection[Sequence[int]], where: str) -> None:
    """Refuses a config with sizes that no tensor of the checkpoint has, before anything is made of them.

    Raises:
      ConversionError: the message names the size.
    """
    experts = config.num_repeats * sum(block.ffn.num_experts for block in config.layer_pattern if isinstance(block.ffn, MoEConfig))
    if experts > len(shapes):
        raise ConversionError(f"{where} describes {experts} experts in all, but the checkpoint has only {len(shapes)} tensors")
    largest = max((size for shape in shapes for size in shape), default=0)
    sizes = {"hidden_size": config.model_dim}
    for block in config.layer_pattern:
        sizes["num_attention_heads * head_dim"] = block.attention.q_heads * block.attention.head_dim
    for ffn in all_ffns(config):
        sizes["intermediate_size"] = max(ffn.ffn_dim, sizes.get("intermediate_size", 0))
    for name, size in sizes.items():
        if size > largest:
            raise ConversionError(
                f"{where} says {name}={size}, but no tensor of the checkpoint has more than {largest} rows or columns"
            )


# ----- writing


def require(family: str, condition: bool, otherwise: str) -> None:
    """Raises ConversionError unless a model has what its family's format can say."""
    if not condition:
        raise ConversionError(f"the {family} format cannot hold this model: {otherwise}")


def only(family: str, values: Iterable[Item], what: str) -> Item:
    """The value that all layers have in common."""
    distinct = set(values)
    require(family, len(distinct) == 1, f"its layers differ in {what}")
    return distinct.pop()


def write_decoder(config: DecoderConfig, family: str, *, activation: str, default_scale: bool = True) -> dict[str, Any]:
    """The fields that all families share; checks that the model has nothing which no family can say.

    Args:
      config: the model.
      family: for the messages.
      activation: name of the field of the activation function.
      default_scale: the family has no field for the scale of the scores.
    """
    blocks = config.layer_pattern
    attention = [block.attention for block in blocks]
    plain = {
        (a.q_heads, a.kv_heads, a.head_dim, a.rope, a.soft_cap, a.scale, a.qkv_bias, a.qk_norm, a.dual_chunk) for a in attention
    }
    only(family, plain, "their attention beyond the window")
    first = attention[0]
    require(family, first.qk_norm is None, "it normalises queries and keys")
    require(family, first.dual_chunk is None, "it has dual chunk attention; clear dual_chunk, which changes no weight")
    scale_is_default = first.scale is None or first.scale == first.head_dim**-0.5
    require(family, scale_is_default or not default_scale, f"its scores are scaled by {first.scale}, not by head_dim ** -0.5")
    require(
        family, config.model_dim % first.q_heads == 0, f"model_dim={config.model_dim} is no multiple of q_heads={first.q_heads}"
    )
    norm = only(family, [*(block.norm for block in blocks), config.final_norm], "their norms (or from the final norm)")
    require(family, not isinstance(config.head, ScalarHead), "its head gives one number a token")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": first.q_heads,
        "num_key_value_heads": first.kv_heads,
        "head_dim": first.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": norm.eps,
        activation: activation_name(only(family, [f.activation for f in all_ffns(config)], "their activation functions"), family),
        "initializer_range": config.init_std if config.init_std is not None else 0.02,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
        **write_rope(first.rope),
    }


def all_ffns(config: DecoderConfig) -> list[FFNConfig]:
    """Every gated layer of the pattern, those of experts included."""
    found: list[FFNConfig] = []
    for block in config.layer_pattern:
        if isinstance(block.ffn, MoEConfig):
            found += [block.ffn.expert] + ([block.ffn.shared] if block.ffn.shared is not None else [])
        else:
            found.append(block.ffn)
    return found


def activation_name(activation: Callable[[Array], Array], family: str) -> str:
    """Transformers' name of an activation function."""
    names = [name for name, function in ACTIVATIONS.items() if function is activation]
    require(family, bool(names), f"transformers has no name for its activation function {activation!r}")
    return names[0]


def plain_head(config: DecoderConfig, family: str) -> None:
    """Requires logits without a soft cap and embeddings without a scale."""
    cap = config.head.soft_cap if isinstance(config.head, TiedHead | LinearHead) else None
    require(family, cap is None, f"its logits are capped at {cap}")
    require(family, not config.embedding_scale, "its embeddings are scaled by sqrt(model_dim)")


def dense_ffn_dim(config: DecoderConfig, family: str) -> int:
    """F of a model without experts, the same in all layers."""
    require(family, not any(isinstance(block.ffn, MoEConfig) for block in config.layer_pattern), "it has experts")
    return only(family, [ffn.ffn_dim for ffn in all_ffns(config)], "their FFN widths")


def write_windows(config: DecoderConfig, family: str) -> tuple[list[bool], int | None]:
    """For each layer whether its attention is windowed, and the window; (..., None) when none is."""
    windows = [config.layer_pattern[layer % len(config.layer_pattern)].attention.window for layer in range(config.num_layers)]
    sizes: Collection[int] = {window for window in windows if window is not None}
    require(family, len(sizes) <= 1, f"its windows have the sizes {sorted(sizes)}, and the format has one size")
    return [window is not None for window in windows], next(iter(sizes), None)


def plain_blocks(config: DecoderConfig, family: str) -> None:
    """Requires pre-norms alone, their gains without an offset."""
    require(family, not any(block.post_norms for block in config.layer_pattern), "it has norms on the outputs of its branches")
    require(family, not config.final_norm.unit_offset, "its norms have gains 1 + w")
