"""Saved tokenizers."""

from pathlib import Path

import pytest

from lmx import tokenizer as tokenizers
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer


def test_a_saved_tokenizer_is_read_back_equal(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    for original in (tokenizer, ByteTokenizer()):
        original.save(tmp_path / original.kind)
        loaded = tokenizers.load(tmp_path / original.kind)
        assert loaded == original and loaded.fingerprint == original.fingerprint


def test_a_directory_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ("[]", "damaged"), ('{"kind": "marvel"}', "this version knows byte, huggingface, sentencepiece, tiktoken")],
)
def test_a_broken_or_unknown_description_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "kind.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        tokenizers.load(tmp_path)


def test_a_truncated_or_missing_model_is_an_error(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged: "):
        tokenizers.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="incomplete"):
        tokenizers.load(tmp_path)
