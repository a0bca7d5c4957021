import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import advantages

KNOWN = jnp.array([[1.0, 0.0, 0.5, 2.0]])
REWARDS = arrays(np.float32, (2, 4), elements=st.floats(-10, 10, width=32))
MASKS = arrays(np.bool_, (2, 4))
ESTIMATORS = (advantages.leave_one_out, advantages.group_centred, advantages.group_normalised)


def test_known_rewards():
    np.testing.assert_allclose(advantages.leave_one_out(KNOWN), [[1 / 6, -7 / 6, -0.5, 1.5]], atol=1e-6)
    population = advantages.group_normalised(KNOWN, ddof=0)
    np.testing.assert_allclose(population, [[0.169008, -1.183056, -0.507024, 1.521072]], atol=1e-5)
    sample = advantages.group_normalised(KNOWN, ddof=1)
    np.testing.assert_allclose(sample, [[0.146368, -1.024575, -0.439104, 1.317311]], atol=1e-5)


@given(REWARDS)
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(rewards):
    others = [[np.delete(row, i).mean(dtype=np.float64) for i in range(4)] for row in rewards]
    np.testing.assert_allclose(advantages.leave_one_out(rewards), rewards - np.array(others), atol=1e-5)


@given(REWARDS)
def test_they_sum_to_zero_over_a_group_and_leave_one_out_is_the_centred_reward_scaled(rewards):
    for estimator in (advantages.leave_one_out, advantages.group_centred):
        np.testing.assert_allclose(estimator(rewards).sum(axis=1), 0.0, atol=2e-5)
    np.testing.assert_allclose(advantages.group_centred(rewards), 0.75 * advantages.leave_one_out(rewards), atol=1e-5)


@given(REWARDS, st.floats(-10, 10, width=32), st.floats(0.125, 8, width=32))
def test_a_shift_changes_nothing_and_a_scale_scales(rewards, shift, scale):
    for estimator in (advantages.leave_one_out, advantages.group_centred):
        np.testing.assert_allclose(estimator(rewards + shift), estimator(rewards), atol=2e-5)
        np.testing.assert_allclose(estimator(scale * rewards), scale * estimator(rewards), rtol=1e-4, atol=1e-4)


@given(REWARDS, st.permutations(range(4)))
def test_permuting_a_group_permutes_its_advantages(rewards, order):
    order = np.array(order)
    for estimator in ESTIMATORS:
        np.testing.assert_allclose(estimator(rewards[:, order]), estimator(rewards)[:, order], atol=2e-5, rtol=1e-3)


@given(REWARDS, MASKS)
def test_a_masked_response_is_as_good_as_never_sampled(rewards, mask):
    for estimator in ESTIMATORS:
        masked = estimator(jnp.where(mask, rewards, jnp.nan), mask=jnp.asarray(mask))
        assert not masked[~mask].any()
        for row, kept, result in zip(rewards, mask, masked, strict=True):
            if kept.sum() >= 2:
                np.testing.assert_allclose(result[kept], estimator(row[None, kept])[0], rtol=1e-4, atol=1e-5)
            else:
                assert not result.any()


@given(st.floats(-1e6, 1e6, width=32))
def test_equal_rewards_give_exactly_zero(reward):
    for estimator in ESTIMATORS:
        np.testing.assert_array_equal(estimator(jnp.full((1, 3), reward)), np.zeros((1, 3)))


def test_two_responses_get_plus_and_minus_their_difference():
    np.testing.assert_allclose(advantages.leave_one_out(jnp.array([[3.0, 1.0]])), [[2.0, -2.0]])


def test_normalised_rewards_have_unit_deviation_by_their_own_count():
    rewards = jax.random.normal(jax.random.key(0), (3, 6))
    for ddof in (0, 1):
        normalised = advantages.group_normalised(rewards, ddof=ddof, epsilon=1e-9)
        np.testing.assert_allclose(np.std(normalised, axis=1, ddof=ddof), 1.0, rtol=1e-5)


def test_a_nan_reward_spoils_its_own_group_only():
    rewards = jnp.array([[1.0, jnp.nan], [0.0, 1.0]])
    for estimator in ESTIMATORS:
        spoilt = jnp.isnan(estimator(rewards))
        np.testing.assert_array_equal(spoilt, [[True, True], [False, False]])


def test_a_shaped_reward_is_the_reward_less_beta_times_the_log_ratio():
    logprobs = {"policy": jnp.array([-1.0, -2.0]), "reference": jnp.array([-1.5, -1.0])}
    shaped = advantages.shaped_rewards(jnp.array([1.0, 0.0]), **logprobs, beta=0.1)
    np.testing.assert_allclose(shaped, [0.95, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(advantages.shaped_rewards(jnp.array([1.0, 0.0]), **logprobs, beta=0.0), [1.0, 0.0])


def test_a_coefficient_adapted_in_training_is_an_array():
    shaped = jax.jit(lambda beta: advantages.shaped_rewards(jnp.ones(1), policy=jnp.ones(1), reference=jnp.zeros(1), beta=beta))
    assert shaped(0.25)[0] == 0.75


def test_no_gradient_flows_through_an_advantage():
    for estimator in ESTIMATORS:
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda r, f=estimator: f(r)[0, 0]))(KNOWN), np.zeros((1, 4)))
    shaped = jax.grad(lambda p: advantages.shaped_rewards(KNOWN[0], policy=p, reference=jnp.zeros(4), beta=1.0).sum())
    np.testing.assert_array_equal(shaped(jnp.ones(4)), np.zeros(4))


def test_a_group_of_one_has_no_other_response_to_compare_with():
    with pytest.raises(ValueError, match="leave-one-out baseline needs at least 2 responses"):
        advantages.leave_one_out(jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="ddof=1 needs at least 2 responses"):
        advantages.group_normalised(jnp.zeros((3, 1)))


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="beta=-0.1"):
        advantages.shaped_rewards(jnp.zeros(1), policy=jnp.zeros(1), reference=jnp.zeros(1), beta=-0.1)
    with pytest.raises(ValueError, match="ddof=2"):
        advantages.group_normalised(KNOWN, ddof=2)
    with pytest.raises(ValueError, match="epsilon=0"):
        advantages.group_normalised(KNOWN, epsilon=0.0)


def test_rewards_that_are_not_grouped_are_refused():
    with pytest.raises(AssertionError):
        advantages.leave_one_out(jnp.zeros(4))
