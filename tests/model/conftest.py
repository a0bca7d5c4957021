"""Small models of every family, built once, with no parameter at a value that hides a missing operation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.data.batches import LMBatch
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model, build_model

SIZES = {"model_dim": 32, "kv_heads": 2, "head_dim": 8, "max_length": 64}
FAMILIES: dict[str, Callable[[], DecoderConfig]] = {
    "qwen2": lambda: tiny.qwen2(48, **SIZES, num_layers=2, q_heads=4, ffn_dim=24),
    "qwen2_moe": lambda: tiny.qwen2_moe(48, **SIZES, num_layers=2, q_heads=4, ffn_dim=16, num_experts=6, experts_per_token=2),
    "afm": lambda: tiny.afm(48, **SIZES, num_layers=2, q_heads=6, ffn_dim=24),
    "gemma2": lambda: tiny.gemma2(48, **SIZES | {"head_dim": 12}, num_layers=4, q_heads=4, ffn_dim=24, window=8),
    "llama3": lambda: tiny.llama3(48, **SIZES, num_layers=2, q_heads=4, ffn_dim=24),
}


@dataclasses.dataclass(frozen=True)
class Built:
    """A model with parameters and its functions under jit."""

    config: DecoderConfig
    model: Model
    params: Any
    apply: Callable[..., Any]
    decode: Callable[..., Any]


def build(config: DecoderConfig) -> Built:
    model = build_model(config)
    rng = np.random.default_rng(1)

    def random(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Biases and gains at their initial 0 or 1 would hide a missing addition or product.
        one = path[-1].key == "gain" and not config.final_norm.unit_offset
        return jnp.asarray(one + rng.standard_normal(leaf.shape) / np.sqrt(config.model_dim), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(random, model.abstract_params())
    return Built(config, model, params, jax.jit(model.apply), jax.jit(model.decode, donate_argnums=2))


@pytest.fixture(scope="session")
def built() -> Callable[[str], Built]:
    """Family name -> Built, each made once."""
    made: dict[str, Built] = {}

    def get(name: str) -> Built:
        if name not in made:
            made[name] = build(FAMILIES[name]())
        return made[name]

    return get


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, built: Callable[[str], Built]) -> Built:
    """Every family in turn."""
    return built(request.param)


@pytest.fixture(scope="session")
def mixed_config() -> DecoderConfig:
    """A pattern of a windowed MoE block and a global dense block of its own width, with post-norms and soft caps."""
    local, full = FAMILIES["gemma2"]().layer_pattern
    moe = FAMILIES["qwen2_moe"]().layer_pattern[0].ffn
    return dataclasses.replace(FAMILIES["gemma2"](), layer_pattern=(dataclasses.replace(local, ffn=moe), full))


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., LMBatch]:
    """Rows of documents from their lengths, padded to `length`; random tokens unless given."""

    def make(documents: list[list[int]], length: int, *, tokens: Any = None, seed: int = 0) -> LMBatch:
        if tokens is None:
            tokens = np.random.default_rng(seed).integers(0, 48, (len(documents), length))
        segment_ids, positions = np.zeros((2, len(documents), length), np.int32)
        for row, sizes in enumerate(documents):
            start = 0
            for number, size in enumerate(sizes, 1):
                segment_ids[row, start : start + size] = number
                positions[row, start : start + size] = np.arange(size)
                start += size
        tokens = jnp.asarray(tokens, jnp.int32)
        return LMBatch(tokens, tokens, jnp.asarray(segment_ids > 0), jnp.asarray(segment_ids), jnp.asarray(positions))

    return make
