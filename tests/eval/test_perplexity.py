"""Bits per byte against closed forms."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmx.data.batches import LMBatch
from lmx.data.sources import JsonLines
from lmx.data.text import Component, PackedText
from lmx.eval import perplexity
from lmx.model.decoder import Model
from lmx.sampling.score import score
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.protocol import start_id

LENGTH = 16


def rows(tokenizer: ByteTokenizer, documents: list[bytes]) -> LMBatch:
    """One document a row: its bytes and EOS as labels; the last row is a filler."""
    shape = (len(documents) + 1, LENGTH)
    tokens, labels = np.full(shape, tokenizer.pad_id, np.int32), np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    for row, document in enumerate(documents):
        ids = [start_id(tokenizer), *tokenizer.encode(document.decode()), tokenizer.eos_id]
        tokens[row, : len(ids) - 1], labels[row, : len(ids) - 1], mask[row, : len(ids) - 1] = ids[:-1], ids[1:], True
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    arrays: Any = (tokens, labels, mask, mask.astype(np.int32), positions)
    return LMBatch(*arrays)


DOCUMENTS = [b"hello", b"a somewhat longer"[:14], b"xy"]
BYTES = sum(map(len, DOCUMENTS))


def test_a_uniform_model_spends_log2_of_the_vocabulary_on_every_byte(
    model: Model, uniform_params: Any, tokenizer: ByteTokenizer
) -> None:
    batches = [rows(tokenizer, DOCUMENTS[:2]), rows(tokenizer, DOCUMENTS[1:])]
    found = perplexity.bits_per_byte(model, uniform_params, batches, text_bytes=BYTES + len(DOCUMENTS[1]), eos_id=tokenizer.eos_id)
    assert found.bits_per_byte == pytest.approx(math.log2(model.config.vocab_size), rel=1e-6)
    assert (found.tokens, found.eos_tokens) == (BYTES + len(DOCUMENTS[1]), 4)
    assert found.row_tokens.tolist() == [5, 14, 0, 14, 2, 0]


def test_all_bytes_count_and_no_end_of_text_token_does(model: Model, params: Any, tokenizer: ByteTokenizer) -> None:
    found = perplexity.bits_per_byte(model, params, [rows(tokenizer, DOCUMENTS)], text_bytes=BYTES, eos_id=tokenizer.eos_id)
    sequences = [[start_id(tokenizer), *tokenizer.encode(document.decode())] for document in DOCUMENTS]
    nats = -sum(float(np.sum(scores)) for scores in score(model, params, sequences))
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / BYTES, rel=1e-5)
    with_ends = perplexity.bits_per_byte(model, params, [rows(tokenizer, DOCUMENTS)], text_bytes=BYTES, eos_id=None)
    assert with_ends.nats > found.nats
    assert (with_ends.tokens, with_ends.eos_tokens) == (BYTES + 3, 0)


def test_improvement_is_the_difference_in_bits_per_byte_with_an_interval(
    model: Model, params: Any, uniform_params: Any, tokenizer: ByteTokenizer
) -> None:
    def measure(parameters: Any) -> perplexity.HeldOut:
        batch = rows(tokenizer, DOCUMENTS)
        return perplexity.bits_per_byte(model, parameters, [batch], text_bytes=BYTES, eos_id=tokenizer.eos_id)

    random, uniform = measure(params), measure(uniform_params)
    saved = perplexity.improvement(uniform, random)
    assert saved.value == pytest.approx(random.bits_per_byte - uniform.bits_per_byte, rel=1e-9)
    assert saved.low < saved.value < saved.high
    assert saved.count == 3  # the filler row is no observation
    other = perplexity.bits_per_byte(model, params, [rows(tokenizer, DOCUMENTS[::-1])], text_bytes=BYTES, eos_id=None)
    with pytest.raises(ValueError, match="scored different rows"):
        perplexity.improvement(uniform, other)


def test_an_empty_heldout_text_is_refused(model: Model, params: Any, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(ValueError, match="the held-out loader gave no batch"):
        perplexity.bits_per_byte(model, params, [], text_bytes=5, eos_id=None)
    with pytest.raises(ValueError, match="text_bytes=0"):
        perplexity.bits_per_byte(model, params, [], text_bytes=0, eos_id=None)
    with pytest.raises(ValueError, match="no label that counts"):
        perplexity.bits_per_byte(model, params, [rows(tokenizer, [])], text_bytes=5, eos_id=None)


def test_the_text_loader_makes_every_byte_of_every_document_a_label(
    model: Model, uniform_params: Any, tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    texts = ["short", "déjà vu " * 9, "a document that is much longer than one row " * 5]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = PackedText(components=(Component(source=JsonLines(path=str(tmp_path / "texts.jsonl"))),))
    loader = data.loader(tokenizer, batch_size=4, length=LENGTH, seed=None, epochs=1)
    text_bytes = sum(len(text.encode()) for text in texts)
    assert loader.text_bytes == text_bytes
    found = perplexity.bits_per_byte(model, uniform_params, loader, text_bytes=text_bytes, eos_id=tokenizer.eos_id)
    assert (found.tokens, found.eos_tokens) == (text_bytes, len(texts))
    assert found.bits_per_byte == pytest.approx(math.log2(model.config.vocab_size), rel=1e-6)
