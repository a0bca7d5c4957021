import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses.best_of_n import best_and_worst, best_of_n_kl

SCORES = arrays(np.float32, (3, 4), elements=st.floats(-5, 5, width=32))


@given(SCORES, arrays(np.bool_, (3, 4)))
def test_best_and_worst_are_the_extremes_of_what_counts(scores, mask):
    picked = best_and_worst(jnp.where(mask, scores, jnp.nan), mask=jnp.asarray(mask))
    for row, kept, best, worst, gap in zip(scores, mask, *picked, strict=True):
        if kept.any():
            assert kept[best] and kept[worst]
            assert row[best] == row[kept].max() and row[worst] == row[kept].min() and gap == row[best] - row[worst]
        else:
            assert gap == 0


def test_of_two_it_is_the_pair_itself():
    picked = best_and_worst(jnp.array([[0.0, 1.0], [3.0, 2.0]]))
    np.testing.assert_array_equal(picked.best, [1, 0])
    np.testing.assert_array_equal(picked.worst, [0, 1])
    np.testing.assert_array_equal(picked.gap, [1.0, 1.0])


def test_equal_scores_have_gap_zero_and_one_response_for_both():
    picked = best_and_worst(jnp.full((1, 4), 0.1))
    assert picked.gap[0] == 0 and picked.best[0] == picked.worst[0] == 0


def test_the_kl_is_that_of_the_exact_distribution_of_the_best_of_n():
    """On V equally probable responses of distinct scores, pi_bon(y) = F(y)^n - F(y-)^n; V large makes it continuous."""
    ends = np.arange(5001) / 5000
    for n, known in ((1, 0.0), (2, 0.1931), (4, 0.6363), (16, 1.8351)):
        best = np.diff(ends**n)
        best = best[best > 0]
        exact = np.sum(best * np.log(best * 5000))
        assert best_of_n_kl(n) == pytest.approx(known, abs=1e-4)
        assert exact == pytest.approx(best_of_n_kl(n), abs=1e-5) and exact <= best_of_n_kl(n) + 1e-12


def test_with_few_responses_it_is_an_upper_bound():
    best = np.diff((np.arange(4) / 3) ** 4)
    assert np.sum(best * np.log(best * 3)) < best_of_n_kl(4)


def test_the_best_of_none_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        best_of_n_kl(0)


def test_scores_that_are_not_grouped_are_refused():
    with pytest.raises(AssertionError):
        best_and_worst(jnp.zeros(4))
