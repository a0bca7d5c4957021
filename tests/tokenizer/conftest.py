"""Small tokenizers of every kind, made or read once."""

import functools
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import pytest

from lmx.tokenizer import foreign
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.conversion import to_huggingface
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer, SentencePieceTraining, train

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def topics() -> list[str]:
    return [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, topics: list[str]) -> SentencePieceTokenizer:
    return train(SentencePieceTraining(vocab_size=600, algorithm=request.param, max_bytes=100_000), topics)


@pytest.fixture(scope="session")
def read_golden() -> Callable[[str], tuple[Tokenizer, Chat]]:
    """Reads one of the small foreign tokenizers that tools/record_tokenizer_goldens.py made."""

    @functools.cache
    def read(name: str) -> tuple[Tokenizer, Chat]:
        tokenizer, chat = foreign.read(GOLDENS / name)
        assert chat is not None
        return tokenizer, chat

    return read


@pytest.fixture(scope="session", params=["bytes", "trained", "gemma", "llama2", "llama3", "qwen2", "llama2.json", "gemma.json"])
def any_kind(request: pytest.FixtureRequest, topics: list[str], read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> Tokenizer:
    """A tokenizer of each kind and origin; `.json` is the model written as tokenizer.json."""
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "trained":
        return train(SentencePieceTraining(vocab_size=600, max_bytes=100_000), topics)
    tokenizer, _ = read_golden(request.param.removesuffix(".json"))
    return to_huggingface(tokenizer) if request.param.endswith(".json") else tokenizer
