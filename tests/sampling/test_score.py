"""Scoring of given tokens."""

from typing import Any

import jax
import numpy as np
import pytest

from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.model.decoder import Model
from lmx.sampling import padding
from lmx.sampling.score import score, sequence_logprobs, token_logprobs

Fitted = tuple[Model, Any]


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
