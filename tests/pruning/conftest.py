"""Small models of every family with no parameter at a value that hides a missing operation, and rows of text for them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.model.config import DecoderConfig, FFNConfig
from lmx.model.decoder import build_model

SIZES = {"model_dim": 16, "kv_heads": 2, "head_dim": 8, "max_length": 32}
FAMILIES: dict[str, Callable[[], DecoderConfig]] = {
    "qwen2": lambda: tiny.qwen2(48, **SIZES, num_layers=3, q_heads=4, ffn_dim=12),
    "qwen2_moe": lambda: tiny.qwen2_moe(48, **SIZES, num_layers=3, q_heads=4, ffn_dim=8, num_experts=4, experts_per_token=2),
    "afm": lambda: tiny.afm(48, **SIZES, num_layers=3, q_heads=6, ffn_dim=12),
    "gemma2": lambda: tiny.gemma2(48, **SIZES, num_layers=4, q_heads=4, ffn_dim=12, window=4),
    "llama3": lambda: tiny.llama3(48, **SIZES, num_layers=3, q_heads=4, ffn_dim=12),
}


def random_params(config: DecoderConfig, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)

    def random(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        one = path[-1].key == "gain" and not config.final_norm.unit_offset
        # Half of fan-in scaling: sharper attention would blow rounding up to 1e-4 in Gemma's four norms a layer.
        return jnp.asarray(one + 0.5 * rng.standard_normal(leaf.shape) / np.sqrt(config.model_dim), leaf.dtype)

    return jax.tree_util.tree_map_with_path(random, build_model(config).abstract_params())


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[DecoderConfig, Any]:
    """Config and parameters of every family in turn."""
    config = FAMILIES[request.param]()
    return config, random_params(config)


@pytest.fixture(scope="session")
def get() -> Callable[[str], tuple[DecoderConfig, Any]]:
    """Config and parameters of a family by name."""
    return lambda name: (FAMILIES[name](), random_params(FAMILIES[name]()))


@pytest.fixture(scope="session")
def batch() -> LMBatch:
    """Two rows of twelve tokens: one document, and two with padding behind."""
    tokens = np.random.default_rng(0).integers(0, 48, (2, 12)).astype(np.int32)
    segments = np.array([[1] * 12, [1] * 5 + [2] * 4 + [0] * 3], np.int32)
    positions = np.array([[*range(12)], [*range(5), *range(4), 0, 0, 0]], np.int32)
    return jax.tree.map(jnp.asarray, LMBatch(tokens, tokens, segments > 0, segments, positions))


@pytest.fixture(scope="session")
def logits_of() -> Callable[[DecoderConfig, Any, LMBatch], np.ndarray]:
    """[B, T, V] logits, 0 on padding."""

    def logits(config: DecoderConfig, params: Any, batch: LMBatch) -> np.ndarray:
        found = head.logits(jax.jit(build_model(config).apply)(params, batch))
        return np.where(np.asarray(batch.segment_ids)[..., None] > 0, found, 0)

    return logits


@pytest.fixture(scope="session")
def resized() -> Callable[..., DecoderConfig]:
    """`resized(config, ffn_dim=..., q_heads=..., kv_heads=..., model_dim=..., num_layers=...)`."""

    def resize(config: DecoderConfig, *, ffn_dim: int | None = None, **sizes: int) -> DecoderConfig:
        heads = {name: sizes.pop(name) for name in ("q_heads", "kv_heads") if name in sizes}

        def block(old: Any) -> Any:
            ffn = old.ffn
            if ffn_dim is not None and isinstance(ffn, FFNConfig):
                ffn = dataclasses.replace(ffn, ffn_dim=ffn_dim)
            scale = old.attention.scale
            return dataclasses.replace(old, attention=dataclasses.replace(old.attention, **heads, scale=scale), ffn=ffn)

        return dataclasses.replace(config, layer_pattern=tuple(map(block, config.layer_pattern)), **sizes)

    return resize
