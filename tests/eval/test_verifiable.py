"""Accuracies and win rates of answers that a program checks."""

from typing import Any

import numpy as np
import pytest

from lmx.eval import statistics, verifiable
from lmx.model.decoder import Model
from lmx.sampling.generate import Sampling, generate
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.prompt import PromptTemplate


def test_accuracy_counts_only_whole_scores_by_task() -> None:
    found = verifiable.accuracy(np.array([1, 0, 1, 0.5], np.float32), ["sort", "sort", "add", "add"])
    assert found.overall == statistics.wilson_interval(2, 4)
    assert found.tasks == {"add": statistics.wilson_interval(1, 2), "sort": statistics.wilson_interval(1, 2)}
    assert list(found.tasks) == ["add", "sort"]


def test_win_rate_counts_ties_half() -> None:
    found = verifiable.win_rate(np.array([1, 1, 0, 0, 1]), np.array([0, 1, 0, 1, 0]))
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)
    assert found.rate == statistics.win_rate_interval(2, 2, 1)
    assert found.rate.value == pytest.approx(0.6)


def test_a_win_rate_and_its_opposite_add_up_to_one() -> None:
    a, b = np.array([1, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0])
    there, back = verifiable.win_rate(a, b).rate, verifiable.win_rate(b, a).rate
    assert there.value + back.value == pytest.approx(1.0)
    assert there.low + back.high == pytest.approx(1.0)


def test_answers_are_the_generated_text_without_template_and_specials(model: Model, params: Any, tokenizer: ByteTokenizer) -> None:
    template = PromptTemplate(before="", after="?", lead="")
    sampling = Sampling(max_new_tokens=4, temperature=0.0)
    texts = verifiable.answers(model, params, ["a", "bc"], tokenizer=tokenizer, template=template, sampling=sampling)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("a?", "bc?")]
    completions = generate(model, params, prompts, sampling=sampling, eos_id=tokenizer.eos_id)
    assert texts == [tokenizer.decode(completion.tokens) for completion in completions]


def test_scores_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores against 1"):
        verifiable.win_rate(np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="2 scores for 1 task names"):
        verifiable.accuracy(np.ones(2), ["a"])
