"""Batches shown to people."""

from collections.abc import Callable
from typing import Any

from lmx.data.supervised import Preferences
from lmx.data.text import Component, PackedText
from lmx.data.view import render_batches
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.prompt import PromptTemplate


def test_boundaries_padding_and_mask_are_visible(text_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    data = PackedText(components=(Component(source=text_source("one", "two words")),))
    loader = data.loader(tokenizer, batch_size=1, length=18, seed=None, epochs=1)
    assert render_batches(loader, tokenizer, 1) == (
        "batch 0, row 0: 18 tokens, 2 segments, 14 labels learned, 2 padding\n"
        "  segment 1: tokens 0..4, positions 0..4\n"
        "    given   | <s>\n"
        "    learned | one</s>\n"
        "  segment 2: tokens 5..15, positions 0..10\n"
        "    given   | <s>\n"
        "    learned | two words</s>"
    )


def test_pairs_show_both_responses_and_that_prompts_are_given(list_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    data = Preferences(
        source=list_source({"prompt": "p\nq", "chosen": "yes", "rejected": "no"}), template=PromptTemplate(before="")
    )
    text = render_batches(data.loader(tokenizer, batch_size=1, length=20, seed=0), tokenizer, 1)
    assert "batch 0, row 0, chosen" in text and "batch 0, row 0, rejected" in text
    assert "    given   | <s>p\n    given   | q\n    given   | Answer:\n    learned |  yes</s>" in text
    assert "    learned |  no</s>" in text


def test_long_runs_are_shortened_in_the_middle(text_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    data = PackedText(components=(Component(source=text_source("a" * 50 + "b" * 50)),))
    text = render_batches(data.loader(tokenizer, batch_size=1, length=128, seed=0), tokenizer, 1, max_characters=20)
    assert "learned | aaaaaaaaaa [... 84 characters ...] bbbbbb</s>" in text


def test_only_as_many_batches_as_asked_are_read(text_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    data = PackedText(components=(Component(source=text_source("a", "b")),))
    text = render_batches(data.loader(tokenizer, batch_size=1, length=4, seed=0), tokenizer, 3)
    assert text.count("row 0") == 3 and "batch 3" not in text
