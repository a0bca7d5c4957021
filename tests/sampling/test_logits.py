"""Properties of the filters of logits."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from lmx.sampling import logits as filters

LOGITS = arrays.arrays(np.float32, (3, 7), elements=st.integers(-80, 80).map(lambda quarter: quarter / 4))


def kept(filtered: jax.Array) -> np.ndarray:
    return np.asarray(filtered) > filters.EXCLUDED


@hypothesis.given(LOGITS, st.integers(1, 7))
def test_top_k_keeps_the_k_largest_and_what_ties_with_them(logits: np.ndarray, k: int) -> None:
    filtered = np.asarray(filters.keep_top_k(jnp.asarray(logits), k))
    expected = logits >= np.sort(logits, axis=-1)[:, ::-1][:, k - 1 : k]
    np.testing.assert_array_equal(filtered, np.where(expected, logits, np.float32(filters.EXCLUDED)))


@hypothesis.given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: np.ndarray, p: float) -> None:
    keep = kept(filters.keep_top_p(jnp.asarray(logits), p))
    for row, mask in zip(logits.astype(np.float64), keep, strict=True):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        assert mask[row.argmax()]
        assert probs[mask].sum() >= p - 1e-5
        least = row[mask].min()
        assert not mask[row < least].any() and mask[row >= least].all()  # a set of the most likely
        assert probs[row > least].sum() < p + 1e-5  # without its least likely members it falls short


@hypothesis.given(LOGITS)
def test_filters_that_keep_everything_change_nothing(logits: np.ndarray) -> None:
    x = jnp.asarray(logits)
    np.testing.assert_array_equal(filters.keep_top_k(x, 7), logits)
    np.testing.assert_array_equal(filters.keep_top_p(x, 1.0), logits)
    np.testing.assert_array_equal(filters.keep_vocabulary(x, 7), logits)


@hypothesis.given(LOGITS, st.integers(0, 2**31))
def test_temperature_zero_and_top_one_take_the_most_likely_token(logits: np.ndarray, seed: int) -> None:
    logits = logits + np.linspace(0, 1e-3, 7, dtype=np.float32)
    hypothesis.assume(all(len(set(row)) == 7 for row in logits))
    keys = jax.random.split(jax.random.key(seed), 3)
    best = logits.argmax(axis=-1)
    np.testing.assert_array_equal(filters.draw(jnp.asarray(logits), keys, temperature=0.0), best)
    np.testing.assert_array_equal(filters.draw(jnp.asarray(logits), keys, temperature=3.0, top_k=1), best)
    np.testing.assert_array_equal(filters.draw(jnp.asarray(logits), keys, temperature=1.0, top_p=1e-6), best)


def test_drawn_frequencies_follow_the_tempered_distribution() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    count, temperature = 20_000, 0.7
    keys = jax.random.split(jax.random.key(0), count)
    drawn = filters.draw(jnp.broadcast_to(logits, (count, 4)), keys, temperature=temperature)
    frequencies = np.bincount(drawn, minlength=4) / count
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / temperature), atol=0.015)  # four standard errors


def test_excluded_tokens_are_never_drawn() -> None:
    logits = jnp.zeros((512, 8))
    keys = jax.random.split(jax.random.key(1), 512)
    drawn = filters.draw(filters.keep_vocabulary(logits, 3), keys, temperature=2.0)
    assert set(np.asarray(drawn).tolist()) == {0, 1, 2}
