"""Scoring of given tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model
from lmx.sampling import padding
from lmx.sampling.generate import Sampling, generate
from lmx.sampling.score import _scores, rolling_windows, score, score_continuations, sequence_logprobs, token_logprobs

Fitted = tuple[Model, Any]
Naive = Callable[..., tuple[list[float], list[bool]]]


def test_scores_are_the_log_softmax_of_the_full_forward_pass(fitted: Fitted, prompts: list[list[int]]) -> None:
    model, params = fitted
    tokens, lengths = padding.pad_rows(prompts, rows=len(prompts), length=32, pad_id=0)
    batch = padding.right_padded(tokens, lengths)
    logprobs = np.asarray(jax.jit(lambda p: jax.nn.log_softmax(head.logits(model.apply(p, batch))))(params))
    for row, (sequence, scores) in enumerate(zip(prompts, score(model, params, prompts), strict=True)):
        expected = logprobs[row, range(len(sequence) - 1), sequence[1:]]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_only_masked_labels_count_in_a_batch(fitted: Fitted) -> None:
    model, params = fitted
    tokens = np.arange(1, 13, dtype=np.int32).reshape(2, 6)
    mask = np.array([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]], bool)
    positions = np.tile(np.arange(6, dtype=np.int32), (2, 1))
    batch: Any = LMBatch(tokens, np.roll(tokens, -1, 1), mask, np.ones_like(tokens), positions)  # type: ignore[arg-type]
    every = score(model, params, tokens.tolist())
    np.testing.assert_allclose(token_logprobs(model, params, batch)[0], [0, every[0][1], every[0][2], 0, 0, 0], atol=1e-5)
    expected = [every[0][1] + every[0][2], every[1][4]]
    np.testing.assert_allclose(sequence_logprobs(model, params, batch), expected, atol=1e-5)


def test_a_single_token_has_no_score(fitted: Fitted) -> None:
    model, params = fitted
    (scores,) = score(model, params, [[5]])
    assert scores.shape == (0,)


def test_a_sequence_longer_than_the_model_is_refused(fitted: Fitted) -> None:
    model, params = fitted
    with pytest.raises(ValueError, match="sequence 0 has 65 tokens, more than the model's max_length=64"):
        score(model, params, [[1] * 65])


@pytest.fixture
def naive(fitted: Fitted) -> Naive:
    """Float64 log-softmax of the whole logits of one row: log-probability and whether it is the largest, of each token."""
    model, params = fitted
    forward = jax.jit(lambda batch: head.logits(model.apply(params, batch)))

    def score_row(context: list[int], continuation: list[int], vocab_size: int = 64) -> tuple[list[float], list[bool]]:
        tokens, lengths = padding.pad_rows([context + continuation], rows=1, length=64, pad_id=0)
        logits = np.asarray(forward(padding.right_padded(tokens, lengths)), np.float64)[0]  # type: ignore[arg-type]
        logprobs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        return (
            [float(logprobs[place, token]) for place, token in zip(places, continuation, strict=True)],
            [int(np.argmax(logits[place, :vocab_size])) == token for place, token in zip(places, continuation, strict=True)],
        )

    return score_row


PAIRS = [
    ([5, 6, 7], [8]),
    ([1], [2, 3, 4, 5]),
    ([5, 6, 7], [9]),  # shares its row with the first and the next
    ([5, 6], [7]),
    ([5, 6, 7], [10]),
    ([11, 12], []),
    (list(range(1, 41)), list(range(20, 44))),  # 64 tokens
    (list(range(1, 41)), list(range(20, 45))),  # 65: the last one need not be read
]


def test_continuations_are_scored_as_by_a_naive_forward_pass_in_the_order_given(fitted: Fitted, naive: Naive) -> None:
    scores = score_continuations(*fitted, PAIRS, batch_size=4)
    for (context, continuation), found in zip(PAIRS[:-1], scores[:-1], strict=True):
        logprobs, greedy = naive(context, continuation)
        np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)
        assert found.greedy.tolist() == greedy
        assert found.total == pytest.approx(sum(logprobs), abs=1e-3)
    np.testing.assert_allclose(scores[-1].logprobs[:-1], scores[-2].logprobs, atol=1e-5)
    assert scores[5].total == 0 and scores[5].all_greedy  # nothing was asked


def test_the_greedy_flag_marks_what_greedy_decoding_writes(fitted: Fitted) -> None:
    model, params = fitted
    sampling = Sampling(max_new_tokens=6, temperature=0.0, vocab_size=60)
    (completion,) = generate(model, params, [[5, 6, 7]], sampling=sampling, eos_id=63)
    other = [*completion.tokens[:-1], (completion.tokens[-1] + 1) % 60]
    pairs = [([5, 6, 7], completion.tokens), ([5, 6, 7], other)]
    right, wrong = score_continuations(model, params, pairs, vocab_size=60)
    assert right.all_greedy and not wrong.all_greedy
    assert wrong.greedy.tolist() == [True] * (len(other) - 1) + [False]


def test_the_most_likely_tokens_come_with_their_log_probabilities(fitted: Fitted, naive: Naive) -> None:
    model, params = fitted
    (found,) = score_continuations(model, params, [([5, 6], [7, 8])], top=3, vocab_size=60)
    assert found.top_logprobs is not None and [len(row) for row in found.top_logprobs] == [3, 3]
    for prefix, row in zip(([5, 6], [5, 6, 7]), found.top_logprobs, strict=True):
        every = [naive(prefix, [token])[0][0] for token in range(60)]
        assert [index for index, _ in row] == np.argsort(every)[::-1][:3].tolist()
        np.testing.assert_allclose([value for _, value in row], sorted(every, reverse=True)[:3], atol=1e-4)


def test_few_shapes_are_compiled_for_many_lengths(fitted: Fitted) -> None:
    model, params = fitted
    random = np.random.default_rng(0)
    pairs = [([1], random.integers(1, 60, random.integers(1, 63)).tolist()) for _ in range(40)]
    before = _scores._cache_size()
    score_continuations(model, params, pairs, batch_size=8)
    assert _scores._cache_size() - before <= 1
    done: list[int] = []
    score_continuations(model, params, pairs, batch_size=8, progress=done.append)
    assert sum(done) == 40 and _scores._cache_size() - before <= 1


def test_every_token_of_a_long_text_is_scored_once_with_all_the_context_there_is_room_for() -> None:
    windows = rolling_windows(list(range(10)), prefix_id=99, max_length=4)
    assert windows == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert rolling_windows([], prefix_id=99, max_length=4) == []
    assert rolling_windows([1], prefix_id=99, max_length=1) == [([99], [1])]


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (([], [1]), "context 0 is empty"),
        (([1], [64]), "pair 0, continuation 0 holds token id 64, but the model's vocabulary is 0..63"),
        (([1] * 40, [2] * 26), "pair 0 has 40 . 26 tokens, more than the model's max_length=64 and one; cut the context"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_refused(fitted: Fitted, pair: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        score_continuations(*fitted, [pair])


def test_a_reward_model_scores_no_text(fitted: Fitted) -> None:
    model, params = fitted
    reward_model = dataclasses.replace(model, config=dataclasses.replace(model.config, head=ScalarHead()))
    with pytest.raises(ValueError, match="needs a language model, but this one has a scalar head"):
        score_continuations(reward_model, params, [([1], [2])])
