"""Packed text from sources to batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmx.core.fingerprint import fingerprint
from lmx.data.batches import without_label
from lmx.data.text import Component, PackedText
from lmx.tokenizer.bytes import ByteTokenizer


@pytest.fixture(scope="session")
def data(text_source: Callable[..., Any]) -> PackedText:
    first = text_source(*("a" * size for size in range(1, 60)))
    second = text_source(*("é" * size for size in range(1, 40)))
    return PackedText(components=(Component(source=first, weight=3), Component(source=second, weight=1)))


def test_an_endless_loader_mixes_tokens_by_weight(data: PackedText, tokenizer: ByteTokenizer) -> None:
    loader = data.loader(tokenizer, batch_size=4, length=16, seed=0)
    rows = np.concatenate([next(loader).tokens for _ in range(40)])
    of_first = (rows == tokenizer.encode("a")[0]).any(axis=1)
    assert abs(of_first.mean() - 0.75) <= 0.01


def test_one_pass_predicts_every_byte_of_every_text_once(data: PackedText, tokenizer: ByteTokenizer) -> None:
    loader = data.loader(tokenizer, batch_size=4, length=16, seed=None, epochs=1)
    texts = list(data.texts())
    assert loader.text_bytes == sum(len(text.encode()) for text in texts)
    labels = np.concatenate([batch.labels[without_label(batch, tokenizer.eos_id).loss_mask] for batch in loader])
    assert tokenizer.decode(labels.tolist()) == "".join(texts)


def test_shards_of_a_pass_cover_the_same_labels(data: PackedText, tokenizer: ByteTokenizer) -> None:
    def labels(**shard: int) -> list[int]:
        loader = data.loader(tokenizer, batch_size=4, length=16, seed=2, epochs=1, **shard)
        return [label for batch in loader for label in batch.labels[batch.loss_mask].tolist()]

    parts = labels(process_index=0, process_count=2) + labels(process_index=1, process_count=2)
    assert sorted(parts) == sorted(labels())


def test_configs_have_fingerprints_and_say_which_data_they_read(data: PackedText) -> None:
    assert fingerprint(data) == fingerprint(data)
    assert set(data.fingerprint()) == {"0.source", "1.source"}


def test_empty_mixtures_and_weights_that_are_not_positive_are_refused(text_source: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least one Component"):
        PackedText(components=())
    with pytest.raises(ValueError, match="weight=0.0 must be positive"):
        Component(source=text_source("a"), weight=0.0)
