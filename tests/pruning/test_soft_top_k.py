"""Soft top k: the goldens, its invariances, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmx.pruning.soft_top_k import soft_top_k

SCORES = arrays(np.float32, 7, elements=st.floats(-3, 3, width=32))
GOLDEN = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0])


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        (1.0, [1, 0.473991, 0.287490, 0.174371, 0.064148]),
        (0.5, [1, 0.657233, 0.241783, 0.088947, 0.012038]),
        (0.1, [1, 0.993262, 0.006693, 0.000045, 0]),
    ],
)
def test_known_weights(eps, expected):
    np.testing.assert_allclose(soft_top_k(GOLDEN, 2, eps), expected, atol=1e-6)


@given(SCORES, st.floats(0.05, 6.95), st.sampled_from([0.02, 0.1, 1.0, 10.0]))
def test_weights_lie_in_the_unit_interval_sum_to_k_and_follow_the_scores(scores, k, eps):
    weights = np.asarray(soft_top_k(jnp.asarray(scores), jnp.float32(k), jnp.float32(eps)))
    assert np.all((weights >= 0) & (weights <= 1))
    assert weights.sum() == pytest.approx(k, abs=3e-6)
    assert np.all(np.diff(weights[np.argsort(scores)]) >= -1e-6)


@given(SCORES, st.integers(1, 6), st.sampled_from([0.05, 1.0]), st.permutations(range(7)))
def test_a_shift_changes_nothing_and_a_permutation_permutes(scores, k, eps, order):
    weights = soft_top_k(jnp.asarray(scores), k, eps)
    np.testing.assert_allclose(soft_top_k(jnp.asarray(scores) + 8.0, k, eps), weights, atol=2e-4)
    np.testing.assert_allclose(soft_top_k(jnp.asarray(scores)[np.array(order)], k, eps), weights[np.array(order)], atol=1e-6)


@given(arrays(np.float32, 7, elements=st.integers(-9, 9), unique=True), st.integers(1, 6))
def test_as_eps_vanishes_it_is_the_hard_top_k(scores, k):
    weights = soft_top_k(jnp.asarray(scores), k, 1e-3)
    np.testing.assert_allclose(weights, scores >= np.sort(scores)[-k], atol=1e-6)


@given(SCORES, st.floats(0.5, 6.5), st.sampled_from([0.1, 1.0]))
def test_it_maximises_its_objective(scores, k, eps):
    weights = np.asarray(soft_top_k(jnp.asarray(scores), jnp.float32(k), eps), np.float64)
    other = np.asarray(soft_top_k(jnp.asarray(scores[::-1].copy()), jnp.float32(k), 2 * eps), np.float64)

    def objective(w):
        return scores @ w - eps * np.sum(np.where(w > 0, w * np.log(np.where(w > 0, w, 1)), 0))

    for share in (0.01, 0.5):
        assert objective(weights) >= objective((1 - share) * weights + share * other) - 1e-4


@pytest.mark.parametrize("eps", [1.0, 0.5, 0.1])
def test_the_jacobian_is_that_of_finite_differences_and_its_rows_sum_to_zero(eps):
    with jax.enable_x64(True):
        scores = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 0.9])
        jacobian = jax.jacrev(lambda s: soft_top_k(s, 2.0, eps))(scores)
        step = 1e-6
        columns = [
            (soft_top_k(scores + step * e, 2.0, eps) - soft_top_k(scores - step * e, 2.0, eps)) / (2 * step) for e in np.eye(6)
        ]
        np.testing.assert_allclose(jacobian, np.stack(columns, axis=1), atol=1e-6)
        np.testing.assert_allclose(jacobian.sum(axis=1), 0, atol=1e-12)


def test_the_gradient_is_finite_at_the_end_of_the_schedule():
    scores = 0.3 * jax.random.normal(jax.random.key(0), (3, 352))
    gradient = jax.jit(jax.grad(lambda s, e: jnp.sum(soft_top_k(s, 117.0, e) ** 2)))(scores, 0.02)
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_stacked_layers_are_solved_one_by_one():
    scores = jax.random.normal(jax.random.key(1), (2, 3, 9))
    whole = soft_top_k(scores, 4, 0.3)
    np.testing.assert_allclose(whole[1, 2], soft_top_k(scores[1, 2], 4, 0.3), rtol=1e-6)


def test_all_of_them_is_no_choice():
    with pytest.raises(ValueError, match="k=5 must lie strictly between 0 and n=5"):
        soft_top_k(GOLDEN, 5, 1.0)
