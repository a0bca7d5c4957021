import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from lmx.losses.reward import bradley_terry_loss, pairwise_accuracy

REWARDS = st.floats(-30, 30, width=32)


@given(REWARDS)
def test_equal_rewards_cost_log2(reward):
    assert bradley_terry_loss(chosen=jnp.array([reward]), rejected=jnp.array([reward]))[0] == pytest.approx(np.log(2))


@given(REWARDS, REWARDS, st.floats(-20, 20, width=32))
def test_a_constant_on_both_rewards_changes_nothing(chosen, rejected, shift):
    plain = bradley_terry_loss(chosen=jnp.array([chosen]), rejected=jnp.array([rejected]))
    shifted = bradley_terry_loss(chosen=jnp.array([chosen + shift]), rejected=jnp.array([rejected + shift]))
    np.testing.assert_allclose(shifted, plain, atol=2e-5)


def test_the_gradient_is_minus_the_probability_of_the_other_order():
    difference = jnp.array([-3.0, 0.0, 2.0])
    grad = jax.grad(lambda d: bradley_terry_loss(chosen=d, rejected=jnp.zeros(3)).sum())(difference)
    np.testing.assert_allclose(grad, -jax.nn.sigmoid(-difference), rtol=1e-6)


def test_a_margin_is_what_the_chosen_reward_must_exceed_the_other_by():
    chosen, margin = jnp.array([2.0, 3.0]), jnp.array([2.0, 1.0])
    loss = bradley_terry_loss(chosen=chosen, rejected=jnp.zeros(2), margin=margin)
    np.testing.assert_allclose(loss, bradley_terry_loss(chosen=chosen - margin, rejected=jnp.zeros(2)), rtol=1e-6)
    assert loss[0] == pytest.approx(np.log(2))


def test_gradients_equal_finite_differences(check_gradient):
    chosen, rejected, margin = np.random.default_rng(0).normal(size=(3, 4))
    check_gradient(lambda c, r, m: bradley_terry_loss(chosen=c, rejected=r, margin=m), chosen, rejected, margin)


def test_accuracy_counts_ties_half():
    accuracy = pairwise_accuracy(chosen=jnp.array([1.0, 1.0, 0.0]), rejected=jnp.array([0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(accuracy, [1.0, 0.5, 0.0])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        bradley_terry_loss(chosen=jnp.zeros((2, 1)), rejected=jnp.zeros(2))
