"""GGUF files made by the gguf package's own writer, and tiny models of each family."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.model.activation import gelu_tanh, silu
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    NormConfig,
    RopeConfig,
    TiedHead,
)
from lmx.model.decoder import build_model

WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """write_gguf(architecture, keys, tensors, types): a file by gguf.GGUFWriter; keys without a dot are below the architecture."""

    def write(
        architecture: str,
        keys: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
        name: str = "model.gguf",
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture, **options)
        adders = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        for key, value in keys.items():
            full = key if key.startswith(("general.", "tokenizer.")) else f"{architecture}.{key}"
            adders[type(value)](full, value)
        for tensor, values in tensors.items():
            kind = (types or {}).get(tensor)
            writer.add_tensor(tensor, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _config(family: str) -> DecoderConfig:
    """A tiny model: 3 query heads over one key head, a window shorter than the test's sequences, biases in qwen2."""
    gemma = family == "gemma2"
    norm = NormConfig(eps=1e-6, unit_offset=gemma)
    attention = AttentionConfig(
        q_heads=3,
        kv_heads=1,
        head_dim=8,
        rope=RopeConfig(theta=10_000.0),
        soft_cap=50.0 if gemma else None,
        qkv_bias=family == "qwen2",
        scale=8**-0.5 if gemma else None,
    )
    ffn = FFNConfig(ffn_dim=32, activation=gelu_tanh if gemma else silu)
    block = BlockConfig(attention=attention, ffn=ffn, norm=norm, post_norms=gemma)
    local = dataclasses.replace(block, attention=dataclasses.replace(attention, window=4))
    return DecoderConfig(
        vocab_size=40,
        model_dim=32,
        num_layers=2,
        layer_pattern=(local, block) if gemma else (block,),
        final_norm=norm,
        head=TiedHead(soft_cap=30.0) if gemma else LinearHead(),
        max_length=64,
        embedding_scale=gemma,
    )


@pytest.fixture
def tiny() -> Callable[[str], DecoderConfig]:
    """tiny(family): the config of a tiny model."""
    return _config


@pytest.fixture
def random_params() -> Callable[..., Any]:
    """random_params(config, seed): float32 parameters, gains and biases far from where they start."""

    def make(config: DecoderConfig, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        centre = 0.0 if config.final_norm.unit_offset else 1.0

        def one(path: Any, leaf: Any) -> np.ndarray:
            name = jax.tree_util.keystr(path)
            values = rng.normal(size=leaf.shape) * (0.3 if "gain" in name or "bias" in name else leaf.shape[-1] ** -0.5)
            return (values + (centre if "gain" in name else 0.0)).astype(np.float32)

        return jax.tree_util.tree_map_with_path(one, build_model(config).abstract_params())

    return make


@pytest.fixture
def load() -> Callable[[Any], Any]:
    """load(source): all parameters of an opened checkpoint, float32, every tensor used exactly once."""

    def read(source: Any) -> Any:
        params = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), build_model(source.config).abstract_params())
        for rule in source.rules:
            assert source.tensors[rule.name].shape == rule.foreign_shape()
            leaf = params
            for key in rule.place.leaf.split("/"):
                leaf = leaf[key]
            leaf[rule.place.indices] = rule.to_lmx(source.read(rule.name))
        used = [*(rule.name for rule in source.rules), *source.ignored]
        assert sorted(used) == sorted(source.tensors)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(params))
        return params

    return read


@pytest.fixture
def logits() -> Callable[[DecoderConfig, Any], np.ndarray]:
    """logits(config, params): of two fixed rows of 12 tokens, [2, 12, V] float32."""

    def run(config: DecoderConfig, params: Any) -> np.ndarray:
        tokens = np.random.default_rng(5).integers(0, config.vocab_size, (2, 12)).astype(np.int32)
        ones = np.ones_like(tokens)
        positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
        batch = LMBatch(tokens=tokens, labels=tokens, loss_mask=ones > 0, segment_ids=ones, positions=positions)
        return np.asarray(head.logits(jax.jit(build_model(config).apply)(params, batch)))

    return run
