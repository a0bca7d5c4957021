"""Models of known likelihood."""

from typing import Any

import jax
import pytest

from configs.models import tiny
from lmx.model.decoder import Model, build_model
from lmx.tokenizer.bytes import ByteTokenizer

SIZE: dict[str, Any] = {
    "model_dim": 16,
    "num_layers": 1,
    "q_heads": 1,
    "kv_heads": 1,
    "head_dim": 16,
    "ffn_dim": 16,
    "max_length": 64,
}


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    """Bytes and a few special tokens."""
    return ByteTokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: ByteTokenizer) -> Model:
    """The smallest Llama."""
    return build_model(tiny.llama3(tokenizer.vocab_size, **SIZE))


@pytest.fixture(scope="session")
def params(model: Model) -> Any:
    """Random parameters."""
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def uniform_params(params: Any) -> Any:
    """All weights zero: every token is equally likely."""
    return jax.tree.map(lambda w: 0 * w, params)
