"""Preference accuracy of a reward model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Outputs
from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.eval.reward import preference_accuracy
from lmx.eval.statistics import wilson_interval
from lmx.model.decoder import Model


def responses(last_tokens: list[int]) -> LMBatch:
    """Rows [1, 1, last token, padding]; token 0 makes an empty row."""
    rows = len(last_tokens)
    tokens = np.zeros((rows, 4), np.int32)
    tokens[:, :2], tokens[:, 2] = 1, last_tokens
    full = np.array(last_tokens)[:, None] > 0
    mask = (np.arange(4) == 1) & full
    arrays: Any = (
        tokens,
        np.roll(tokens, -1, 1),
        mask,
        ((np.arange(4) < 3) & full).astype(np.int32),
        np.tile(np.arange(4), (rows, 1)),
    )
    return LMBatch(*arrays)


def rewarding(reward_of: Callable[[Any], Any], model: Model) -> Model:
    """A model whose reward at a token is a function of that token alone."""

    def apply(params: Any, batch: LMBatch) -> Outputs:
        return Outputs(hidden=reward_of(jnp.asarray(batch.tokens, jnp.float32))[..., None], head=jnp.ones((1, 1)))

    return dataclasses.replace(model, apply=apply)


def test_ties_count_half_and_filler_rows_not_at_all(model: Model) -> None:
    batches = [
        PreferenceBatch(responses([5, 2, 3, 7]), responses([4, 6, 3, 1])),
        PreferenceBatch(responses([9, 0]), responses([1, 0])),
    ]
    found = preference_accuracy(rewarding(lambda tokens: tokens, model), {}, batches)
    assert found == wilson_interval(3.5, 5)  # right, wrong, tied, right, right
    opposite = preference_accuracy(rewarding(lambda tokens: -tokens, model), {}, batches)
    assert opposite.value == pytest.approx(1 - found.value)


def test_a_reward_that_is_not_a_number_is_refused(model: Model) -> None:
    batch = PreferenceBatch(responses([5, 2]), responses([4, 6]))
    with pytest.raises(ValueError, match="1 of 2 pairs have a reward that is not a number"):
        preference_accuracy(rewarding(lambda tokens: jnp.where(tokens == 6, jnp.nan, tokens), model), {}, [batch])


def test_no_pairs_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="gave no batch"):
        preference_accuracy(model, {}, [])
    with pytest.raises(ValueError, match="none has two responses"):
        preference_accuracy(rewarding(lambda tokens: tokens, model), {}, [PreferenceBatch(responses([0]), responses([3]))])
