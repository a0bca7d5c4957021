"""Properties of the drawing of tokens, row by row."""

import functools
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.sampling import logits as drawing

ROWS, VOCABULARY = 3, 7
LOGITS = arrays.arrays(np.float32, (ROWS, VOCABULARY), elements=st.integers(-80, 80).map(lambda quarter: quarter / 4))


@functools.cache
def threshold_fn(short_list: int) -> Any:
    """`keep_threshold` compiled under a length of the short list."""
    assert short_list == drawing.SHORT_LIST
    return jax.jit(lambda logits, **filters: drawing.keep_threshold(logits, **filters))


def kept(logits: np.ndarray, *, top_k: int = VOCABULARY, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    rows = len(logits)
    threshold = threshold_fn(drawing.SHORT_LIST)(
        jnp.asarray(logits),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        min_p=jnp.full(rows, min_p, jnp.float32),
    )
    return logits >= np.asarray(threshold)[:, None]


def rows_of(count: int, vocabulary: int, **given: Any) -> drawing.RowSampling:
    values = {
        "key": np.stack([np.arange(count), np.arange(count)], axis=1).astype(np.uint32),
        "temperature": np.ones(count, np.float32),
        "top_k": np.full(count, vocabulary, np.int32),
        "top_p": np.ones(count, np.float32),
        "min_p": np.zeros(count, np.float32),
        "repetition_penalty": np.ones(count, np.float32),
        "vocab_size": np.full(count, vocabulary, np.int32),
    }
    values |= {name: np.broadcast_to(np.asarray(value, values[name].dtype), values[name].shape) for name, value in given.items()}
    return drawing.RowSampling(**{name: jnp.asarray(value) for name, value in values.items()})


next_token = jax.jit(drawing.next_token)
pick = jax.jit(drawing.pick)


def draw(logits: np.ndarray, rows: drawing.RowSampling, *, drawn: int = 0, seen: np.ndarray | None = None) -> np.ndarray:
    count = len(logits)
    marks = jnp.zeros(logits.shape, bool) if seen is None else jnp.asarray(seen)
    token, _, _ = next_token(
        jnp.asarray(logits), rows, drawn=jnp.full(count, drawn, jnp.int32), seen=marks, active=jnp.ones(count, bool)
    )
    return np.asarray(token)


@pytest.fixture(params=[drawing.SHORT_LIST, 2], ids=["listed", "searched"])
def short_list(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds from the list of most likely tokens, and by bisection because the list is too short."""
    monkeypatch.setattr(drawing, "SHORT_LIST", request.param)


@pytest.mark.usefixtures("short_list")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(LOGITS, st.integers(1, VOCABULARY + 1))
def test_top_k_keeps_the_k_largest_and_what_ties_with_them(logits: np.ndarray, k: int) -> None:
    least = np.sort(logits, axis=-1)[:, ::-1][:, min(k, VOCABULARY) - 1, None]
    np.testing.assert_array_equal(kept(logits, top_k=k), logits >= least)


@pytest.mark.usefixtures("short_list")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: np.ndarray, p: float) -> None:
    for row, mask in zip(logits.astype(np.float64), kept(logits, top_p=p), strict=True):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        assert mask[row.argmax()]
        assert probs[mask].sum() >= p - 1e-5
        least = row[mask].min()
        assert not mask[row < least].any() and mask[row >= least].all()  # a set of the most likely
        assert probs[row > least].sum() < p + 1e-5  # without its least likely members it falls short


@pytest.mark.usefixtures("short_list")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(LOGITS, st.integers(1, VOCABULARY), st.floats(0.05, 0.95))
def test_top_p_counts_the_mass_that_top_k_left(logits: np.ndarray, k: int, p: float) -> None:
    inside = kept(logits, top_k=k)
    limited = np.where(inside, logits, np.float32(drawing.EXCLUDED))
    expected = kept(limited, top_p=p)
    np.testing.assert_array_equal(kept(logits, top_k=k, top_p=p), expected)


@hypothesis.given(LOGITS, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_at_least_so_likely_as_a_fraction_of_the_best(logits: np.ndarray, fraction: float) -> None:
    ratio = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    mask = kept(logits, min_p=fraction)
    assert mask[ratio > fraction * (1 + 1e-5)].all() and not mask[ratio < fraction * (1 - 1e-5)].any()


@hypothesis.given(LOGITS)
def test_filters_that_are_off_keep_everything(logits: np.ndarray) -> None:
    assert kept(logits).all()


@hypothesis.given(LOGITS, st.integers(0, 1000))
def test_temperature_zero_and_filters_of_one_take_the_most_likely_token(logits: np.ndarray, drawn: int) -> None:
    logits = logits + np.linspace(0, 1e-3, VOCABULARY, dtype=np.float32)
    hypothesis.assume(all(len(set(row)) == VOCABULARY for row in logits))
    best = logits.argmax(axis=-1)
    for given in ({"temperature": 0.0}, {"temperature": 3.0, "top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.01, "min_p": 0.999}):
        np.testing.assert_array_equal(draw(logits, rows_of(ROWS, VOCABULARY, **given), drawn=drawn), best)


def test_drawn_frequencies_follow_the_tempered_distribution() -> None:
    logits, count = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)), 20_000
    drawn = draw(np.broadcast_to(logits, (count, 4)), rows_of(count, 4, temperature=0.7), drawn=3)
    frequencies = np.bincount(drawn, minlength=4) / count
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 0.7), atol=0.015)  # four standard errors


def test_a_row_draws_new_numbers_at_every_token() -> None:
    logits = np.zeros((1, 1000), np.float32)
    drawn = [draw(logits, rows_of(1, 1000), drawn=count)[0] for count in range(8)]
    assert len(set(drawn)) > 6


def test_excluded_tokens_are_never_drawn() -> None:
    drawn = draw(np.zeros((512, 8), np.float32), rows_of(512, 8, temperature=2.0, vocab_size=3))
    assert set(drawn.tolist()) == {0, 1, 2}


@hypothesis.given(
    arrays.arrays(np.float32, (1, 300), elements=st.sampled_from([0.0, 0.0, 1.0, 3.0])), st.floats(0, 1, exclude_max=True, width=32)
)
def test_pick_inverts_the_running_sum(weights: np.ndarray, fraction: float) -> None:
    hypothesis.assume(weights.any())
    picked = int(pick(jnp.asarray(weights), jnp.asarray([fraction]))[0])
    running = np.cumsum(weights[0].astype(np.float64))
    target = fraction * running[-1]
    assert weights[0, picked] > 0
    assert running[picked] >= target * (1 - 1e-5) and running[picked] - weights[0, picked] <= target * (1 + 1e-5)


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    logits, seen = np.array([[2.0, 1.9, -1.0, -1.2]], np.float32), np.array([[True, False, True, False]])
    np.testing.assert_allclose(
        drawing.penalize(jnp.asarray(logits), jnp.asarray(seen), jnp.asarray([1.5])), [[2 / 1.5, 1.9, -1.5, -1.2]], rtol=1e-6
    )
    assert draw(logits, rows_of(1, 4, temperature=0.0, repetition_penalty=1.5), seen=seen)[0] == 1


def test_what_a_row_draws_does_not_depend_on_the_other_rows_filters() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, 600)).astype(np.float32)
    alone = draw(logits, rows_of(4, 600, top_p=[1.0, 0.9, 1.0, 0.3]), drawn=5)
    mixed = draw(logits, rows_of(4, 600, top_p=[0.99999, 0.9, 0.7, 0.3], top_k=[600, 600, 400, 600]), drawn=5)
    assert alone[1] == mixed[1] and alone[3] == mixed[3]


def test_log_probabilities_are_those_of_the_model_at_the_rows_temperature() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (2, 9)).astype(np.float32)
    rows = rows_of(2, 9, temperature=[0.0, 0.5], top_k=1, repetition_penalty=1.3)
    token, logprob, normalizer = next_token(
        jnp.asarray(logits), rows, drawn=jnp.zeros(2, jnp.int32), seen=jnp.ones((2, 9), bool), active=jnp.ones(2, bool)
    )
    expected = jax.nn.log_softmax(logits / np.array([[1.0], [0.5]], np.float32))
    np.testing.assert_allclose(logprob, np.asarray(expected)[[0, 1], np.asarray(token)], atol=1e-5)
    ids, values = drawing.top_logprobs(jnp.asarray(logits), rows, normalizer, 3)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=-1)[:, :3])
    np.testing.assert_allclose(values, np.sort(np.asarray(expected), axis=-1)[:, ::-1][:, :3], atol=1e-5)
