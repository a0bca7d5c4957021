"""A small SentencePiece tokenizer, trained once."""

import pydoc_data.topics

import pytest

from lmx.tokenizer.sentencepiece import SentencePieceTokenizer, SentencePieceTraining, train


@pytest.fixture(scope="session")
def topics() -> list[str]:
    return [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, topics: list[str]) -> SentencePieceTokenizer:
    return train(SentencePieceTraining(vocab_size=600, algorithm=request.param, max_bytes=100_000), topics)
