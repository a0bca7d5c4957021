"""Models and prompts for the sampling tests."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model, build_model

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "model_dim": 32,
    "num_layers": 2,
    "q_heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "max_length": 64,
}
FAMILIES: dict[str, Callable[..., DecoderConfig]] = {
    "qwen2": tiny.qwen2,
    "qwen2_moe": tiny.qwen2_moe,
    "afm": tiny.afm,
    "gemma2": partial(tiny.gemma2, window=8),
    "llama3": tiny.llama3,
}


@cache
def build(family: str) -> tuple[Model, Any]:
    """A model of few parameters and random weights, made without compiling its `init`."""
    model = build_model(FAMILIES[family](**SIZE))
    generator = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), leaf.dtype), model.abstract_params())


@pytest.fixture(params=sorted(FAMILIES))
def each_family(request: pytest.FixtureRequest) -> tuple[Model, Any]:
    """Every family in turn."""
    return build(request.param)


@pytest.fixture
def fitted() -> tuple[Model, Any]:
    """One model and its parameters."""
    return build("qwen2")


@pytest.fixture
def prompts() -> list[list[int]]:
    """Six prompts of 1 to 13 tokens."""
    return [[5], [7, 9, 11], list(range(2, 13)), [40, 3, 3, 8, 21], list(range(20, 33)), [1, 2]]


@pytest.fixture
def build_family() -> Callable[[str], tuple[Model, Any]]:
    """Makes the model of a family and its parameters."""
    return build
