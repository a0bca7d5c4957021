"""Instructions and preferences from sources to batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmx.data.supervised import Instructions, Preferences
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.prompt import PromptTemplate

BARE = PromptTemplate(before="", after=":", lead="")


def test_instructions_learn_responses_and_eos(list_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    source = list_source({"prompt": "ab", "answer": "c"}, {"prompt": "d", "answer": "ef"})
    [batch] = Instructions(source=source, template=BARE).loader(tokenizer, batch_size=1, length=14, seed=None, epochs=1)
    learned = batch.labels[batch.loss_mask].tolist()
    assert learned == [*tokenizer.encode("c"), tokenizer.eos_id, *tokenizer.encode("ef"), tokenizer.eos_id]
    assert batch.segment_ids.tolist() == [[1] * 6 + [2] * 6 + [0] * 2]


def test_fields_can_be_named(list_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    source = list_source({"q": "a", "r": "b"})
    config = Instructions(source=source, template=BARE, prompt_field="q", response_field="r")
    batch = next(config.loader(tokenizer, batch_size=1, length=8, seed=0))
    assert tokenizer.decode(batch.labels[batch.loss_mask].tolist()) == "b"
    with pytest.raises(ValueError, match="row 0 of .* has no field 'prompt'; it has 'q', 'r'"):
        Instructions(source=source).loader(tokenizer, batch_size=1, length=8, seed=0)


def test_preferences_learn_both_responses_behind_the_same_prompt(list_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    source = list_source({"prompt": "p", "chosen": "yes", "rejected": "n"}, {"prompt": "q", "chosen": "a", "rejected": "b"})
    [batch] = Preferences(source=source, template=BARE).loader(tokenizer, batch_size=4, length=8, seed=None, epochs=1)
    assert tokenizer.decode(batch.chosen.labels[0][batch.chosen.loss_mask[0]].tolist()) == "yes"
    assert tokenizer.decode(batch.rejected.labels[0][batch.rejected.loss_mask[0]].tolist()) == "n"
    assert np.array_equal(batch.chosen.tokens[:, :3], batch.rejected.tokens[:, :3])
    assert batch.chosen.loss_mask.any(axis=1).tolist() == [True, True, False, False]


@pytest.mark.parametrize("kind", [Instructions, Preferences])
def test_examples_too_long_are_an_error_or_dropped_and_counted_never_cut(
    kind: Any, list_source: Callable[..., Any], tokenizer: ByteTokenizer
) -> None:
    rows = [{"prompt": "p", "answer": text, "chosen": "c", "rejected": text} for text in ("short", "x" * 30, "y" * 30)]
    source = list_source(*rows)
    order = {"batch_size": 1, "length": 20, "seed": 0}
    with pytest.raises(ValueError, match="row 1 of .* makes 34 tokens, more than length=20"):
        kind(source=source, template=BARE).loader(tokenizer, **order)
    loader = kind(source=source, template=BARE, drop_too_long=True).loader(tokenizer, **order, epochs=1)
    assert loader.dropped == 2 and loader.num_batches == 1
    with pytest.raises(ValueError, match="no row of at most length=3 tokens"):
        kind(source=source, template=BARE, drop_too_long=True).loader(tokenizer, batch_size=1, length=3, seed=0)


def test_an_example_that_just_fits_is_kept(list_source: Callable[..., Any], tokenizer: ByteTokenizer) -> None:
    source = list_source({"prompt": "ab", "answer": "cd"})
    batch = next(Instructions(source=source, template=BARE).loader(tokenizer, batch_size=1, length=7, seed=0))
    assert (batch.segment_ids == 1).all() and batch.tokens[0, -1] == tokenizer.eos_id
