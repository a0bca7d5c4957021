"""Tokenized documents in memory and on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmx.data import store
from lmx.data.store import open_store
from lmx.tokenizer.bytes import ByteTokenizer


def test_documents_stand_end_to_end_without_specials_and_empty_ones(
    text_source: Callable[..., Any], tokenizer: ByteTokenizer
) -> None:
    documents = open_store(text_source("ab", "", "é"), "text", "train", tokenizer)
    assert documents.tokens.tolist() == tokenizer.encode("abé") and documents.tokens.dtype == np.uint16
    assert documents.offsets.tolist() == [0, 2, 4]
    assert documents.text_bytes == 4 and documents.num_documents == 2


def test_a_store_on_disk_equals_the_one_in_memory(
    text_source: Callable[..., Any], tokenizer: ByteTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_CHARACTERS", 5)
    source = text_source(*("abcdefgh"[:size] for size in range(1, 8)))
    memory = open_store(source, "text", "train", tokenizer)
    disk = open_store(source, "text", "train", tokenizer, tmp_path)
    assert np.array_equal(disk.tokens, memory.tokens) and np.array_equal(disk.offsets, memory.offsets)
    assert disk.text_bytes == memory.text_bytes and isinstance(disk.tokens, np.memmap)
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_sources_are_tokenized_once(text_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    assert open_store(text_source("once"), "text", "train", tokenizer) is open_store(
        text_source("once"), "text", "train", ByteTokenizer()
    )


def test_a_split_without_text_is_an_error(text_source: Callable[..., Any], tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    for directory in (None, tmp_path):
        with pytest.raises(ValueError, match="no text in the split 'train'"):
            open_store(text_source("", ""), "text", "train", tokenizer, directory)


def test_a_truncated_store_is_named(text_source: Callable[..., Any], tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    source = text_source("to be cut short")
    open_store(source, "text", "train", tokenizer, tmp_path)
    [directory] = tmp_path.iterdir()
    (directory / "tokens.bin").write_bytes(b"\x05\x00")
    store._open_store.cache_clear()
    with pytest.raises(ValueError, match="tokens.bin holds 1 ids, expected 15; remove the directory"):
        open_store(source, "text", "train", tokenizer, tmp_path)
