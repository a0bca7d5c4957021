"""Hyper-parameters of llama.cpp's llama, qwen2 and gemma2 as a decoder's config, and back."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmx.convert.gguf.families import TABLES
from lmx.convert.gguf.keys import Keys
from lmx.convert.gguf.rope import read_rope, write_rope
from lmx.convert.source import ConversionError
from lmx.model import rope
from lmx.model.activation import gelu_tanh, silu
from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, LinearHead, MoEConfig, NormConfig, TiedHead

Shape = tuple[int, ...]
GEMMA2_WINDOW, GEMMA2_SCORE_CAP, GEMMA2_LOGIT_CAP = 4_096, 50.0, 30.0  # what llama.cpp takes where the file is silent
_GEMMA2_27B_LAYERS = 46
_EXPERTS = ("expert_count", "expert_used_count", "expert_shared_count")


def read_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, Shape], divisors: np.ndarray | None, path: Path
) -> tuple[str, DecoderConfig]:
    """The architecture's name and the model that the metadata describe.

    Args:
      metadata: of the file.
      shapes: shape of every tensor, as in numpy: vocabulary, ties and biases are told by them.
      divisors: the tensor `rope_freqs.weight` of a llama, None without one.
      path: of the file, for messages.

    Raises:
      ConversionError: an architecture or a mechanism that lmx does not have, or sizes that the tensors contradict.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in TABLES:
        raise ConversionError(f"{path}: the architecture is {architecture!r}; of GGUF files lmx reads {', '.join(TABLES)}")
    if metadata.get("general.type", "model") != "model":
        raise ConversionError(f"{path}: holds no model but a {metadata['general.type']!r}; lmx reads whole models only")
    keys = Keys(metadata, architecture, path)
    try:
        return architecture, _read(keys, shapes, divisors)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error


def _read(keys: Keys, shapes: Mapping[str, Shape], divisors: np.ndarray | None) -> DecoderConfig:
    gemma = keys.architecture == "gemma2"
    model_dim, num_layers = keys.whole("embedding_length"), keys.whole("block_count")
    heads = keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", max(1, model_dim // heads))
    attention = AttentionConfig(
        q_heads=heads,
        kv_heads=keys.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope=read_rope(keys, head_dim, keys.whole("context_length"), divisors),
        soft_cap=keys.real("attn_logit_softcapping", GEMMA2_SCORE_CAP) if gemma else None,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        scale=_gemma_scale(num_layers, model_dim, heads, head_dim) if gemma else None,
    )
    ffn = FFNConfig(ffn_dim=keys.whole("feed_forward_length"), activation=gelu_tanh if gemma else silu)
    _check_sizes(keys, attention, model_dim, ffn.ffn_dim, num_layers, shapes)
    norm = NormConfig(eps=keys.real("attention.layer_norm_rms_epsilon"), unit_offset=gemma)
    soft_cap = keys.real("final_logit_softcapping", GEMMA2_LOGIT_CAP) if gemma else None
    block = BlockConfig(attention=attention, ffn=ffn, norm=norm, post_norms=gemma)
    config = DecoderConfig(
        vocab_size=shapes["token_embd.weight"][0],
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=_alternating(block, keys.whole("attention.sliding_window", GEMMA2_WINDOW), num_layers) if gemma else (block,),
        final_norm=norm,
        head=LinearHead(soft_cap=soft_cap) if "output.weight" in shapes else TiedHead(soft_cap=soft_cap),
        max_length=keys.whole("context_length"),
        embedding_scale=gemma,
    )
    _check_neutral(keys, config, gemma)
    return config


def _gemma_scale(num_layers: int, model_dim: int, heads: int, head_dim: int) -> float:
    """Multiplier of Gemma 2's scores, which GGUF does not hold: llama.cpp tells the 27B model, whose differs, by its depth."""
    return float(model_dim // heads if num_layers == _GEMMA2_27B_LAYERS else head_dim) ** -0.5


def _alternating(block: BlockConfig, window: int, num_layers: int) -> tuple[BlockConfig, ...]:
    """Local layers at even depths, global ones at odd depths; an odd number of layers takes a pattern of all of them."""
    local = dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=window))
    return tuple(block if depth % 2 else local for depth in range(2 if num_layers % 2 == 0 else num_layers))


def _check_neutral(keys: Keys, config: DecoderConfig, gemma: bool) -> None:
    """What lmx does not have must be off, and nothing may be left unread."""
    attention = config.layer_pattern[0].attention
    keys.neutral("attention.value_length", attention.head_dim)
    keys.neutral("attention.causal", True)
    keys.neutral("pooling_type", 0)
    keys.neutral("use_parallel_residual", False)
    for name in _EXPERTS:
        keys.neutral(name, 0)
    if gemma:
        keys.neutral("attention.sliding_window_pattern", 2)
        keys.neutral("rope.freq_base_swa", np.float32(attention.rope.theta).item())
    elif keys.get("attention.sliding_window") not in (None, 0) and keys.whole("attention.sliding_window") < config.max_length:
        raise keys.error(
            "attention.sliding_window", "is set, but llama.cpp uses no window in this architecture; lmx cannot tell which is right"
        )
    vocab_size = keys.whole("vocab_size", config.vocab_size)
    if vocab_size > config.vocab_size:
        raise keys.error("vocab_size", f"is {vocab_size:,}, but token_embd.weight has only {config.vocab_size:,} rows")
    keys.ignore("tensor_data_layout")
    keys.finish()


def _check_sizes(
    keys: Keys, attention: AttentionConfig, model_dim: int, ffn_dim: int, num_layers: int, shapes: Mapping[str, Shape]
) -> None:
    """Sizes against the tensors of the first layer, before anything is made that grows with them."""
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise ConversionError(f"{keys.path}: token_embd.weight must be a table [vocabulary, {model_dim}], found {embedding}")
    expected = {
        "token_embd.weight": (embedding[0], model_dim),
        "blk.0.attn_q.weight": (attention.q_heads * attention.head_dim, model_dim),
        "blk.0.attn_k.weight": (attention.kv_heads * attention.head_dim, model_dim),
        "blk.0.ffn_up.weight": (ffn_dim, model_dim),
    }
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ConversionError(
                f"{keys.path}: by its metadata {name} has the shape {shape}, found {shapes.get(name, 'no such tensor')}"
            )
    if num_layers > len(shapes):
        raise keys.error("block_count", f"is {num_layers:,}, but the file holds only {len(shapes):,} tensors")


def describe_config(config: DecoderConfig, architecture: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """Metadata that `read_config` reads back as this model, and Llama 3.1's frequency divisors.

    Raises:
      ConversionError: the architecture cannot express the model; the message names what differs.
    """
    gemma = architecture == "gemma2"
    block = config.layer_pattern[0]
    attention = block.attention
    if isinstance(block.ffn, MoEConfig):
        raise ConversionError("the model has mixtures of experts, and lmx writes only dense models to GGUF")
    rope_keys, divisors = write_rope(attention.rope, attention.head_dim)
    values: dict[str, Any] = {
        "context_length": config.max_length,
        "embedding_length": config.model_dim,
        "block_count": config.num_layers,
        "feed_forward_length": block.ffn.ffn_dim,
        "attention.head_count": attention.q_heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": float(block.norm.eps),
        "vocab_size": config.vocab_size,
        **rope_keys,
    }
    if gemma:
        values["attn_logit_softcapping"] = attention.soft_cap
        values["final_logit_softcapping"] = getattr(config.head, "soft_cap", None)
        values["attention.sliding_window"] = attention.window
    metadata = {"general.architecture": architecture, "general.type": "model"}
    metadata |= {f"{architecture}.{name}": value for name, value in values.items() if value is not None}
    _check_expressible(config, architecture, metadata, divisors)
    return metadata, divisors


def _check_expressible(config: DecoderConfig, architecture: str, metadata: dict[str, Any], divisors: np.ndarray | None) -> None:
    """Reads the metadata back: what is not the same model is not written."""
    if architecture == "qwen2" and not config.layer_pattern[0].attention.qkv_bias:
        raise ConversionError("llama.cpp's qwen2 always has biases on q, k and v, and this model has none")
    if divisors is not None and architecture != "llama":
        raise ConversionError(f"llama.cpp's {architecture} does not apply Llama 3.1's frequency scaling")
    attention = config.layer_pattern[0].attention
    shapes: dict[str, Shape] = {
        "token_embd.weight": (config.vocab_size, config.model_dim),
        "blk.0.attn_q.weight": (attention.q_heads * attention.head_dim, config.model_dim),
        "blk.0.attn_k.weight": (attention.kv_heads * attention.head_dim, config.model_dim),
        "blk.0.ffn_up.weight": (metadata[f"{architecture}.feed_forward_length"], config.model_dim),
    }
    shapes |= {} if isinstance(config.head, TiedHead) else {"output.weight": (config.vocab_size, config.model_dim)}
    shapes |= {"blk.0.attn_q.bias": (attention.q_heads * attention.head_dim,)} if attention.qkv_bias else {}
    shapes |= {f"blk.{layer}.attn_norm.weight": (config.model_dim,) for layer in range(config.num_layers)}
    stored = {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in metadata.items()}
    _, back = read_config(stored, shapes, divisors, Path(f"a GGUF file of the architecture {architecture}"))
    if difference := _difference(_comparable(config), _comparable(back), "the model"):
        raise ConversionError(f"llama.cpp's {architecture} cannot express {difference}")


def _comparable(config: DecoderConfig) -> Any:
    """The config as nested dicts that are equal where two models compute the same: layers one by one, defaults filled in."""

    def block(value: BlockConfig) -> dict[str, Any]:
        fields = dataclasses.asdict(value)
        attention = value.attention
        fields["attention"]["scale"] = attention.head_dim**-0.5 if attention.scale is None else attention.scale
        if attention.window is not None and attention.window >= config.max_length:
            fields["attention"]["window"] = None
        turns = rope.frequencies(attention.head_dim, attention.rope).tolist()
        fields["attention"]["rope"] = {"frequencies": turns, "magnitude": rope.magnitude(attention.rope)}
        return fields

    pattern = config.layer_pattern
    layers = {f"layer {layer}": block(pattern[layer % len(pattern)]) for layer in range(config.num_layers)}
    whole = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("layer_pattern", "init_std")
    }
    head = {"kind": type(config.head).__name__, **dataclasses.asdict(config.head)}
    return {**whole, "final_norm": dataclasses.asdict(config.final_norm), "head": head, **layers}


def _difference(ours: Any, theirs: Any, where: str) -> str | None:
    """Names the first value that differs, None if none does."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = {key: (ours.get(key), theirs.get(key)) for key in (*ours, *theirs)}
        return next((found for key, (a, b) in pairs.items() if (found := _difference(a, b, f"{where}'s {key}"))), None)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        texts = (_difference(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(ours, theirs, strict=True)))
        return next((text for text in texts if text), None)
    same = math.isclose(ours, theirs, rel_tol=1e-6) if isinstance(ours, float) and isinstance(theirs, float) else ours == theirs
    return None if same else f"{where} = {_shown(ours)}, which would read {_shown(theirs)}"


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)
