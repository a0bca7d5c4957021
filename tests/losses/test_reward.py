import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from lmx.losses.reward import (
    bradley_terry_loss,
    grading_loss,
    level_probabilities,
    pairwise_accuracy,
    ranking_loss,
    soft_label_loss,
)

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


@given(REWARDS, REWARDS)
def test_a_sure_soft_label_is_bradley_terry_and_an_unsure_one_wants_equal_rewards(chosen, rejected):
    pair = {"chosen": jnp.array([chosen]), "rejected": jnp.array([rejected])}
    np.testing.assert_allclose(soft_label_loss(**pair, probability=jnp.ones(1)), bradley_terry_loss(**pair), rtol=1e-6)
    assert soft_label_loss(**pair, probability=jnp.full(1, 0.5))[0] >= np.log(2) - 1e-6


@given(REWARDS, st.floats(0, 1, width=32))
def test_at_equal_rewards_a_soft_label_costs_log2(reward, probability):
    equal = jnp.array([reward])
    assert soft_label_loss(chosen=equal, rejected=equal, probability=jnp.array([probability]))[0] == pytest.approx(np.log(2))


def test_the_optimum_of_each_level_is_the_logit_of_its_probability():
    probability = level_probabilities(jnp.arange(4))
    np.testing.assert_allclose(probability, [0.65, 0.75, 0.85, 0.95])
    optimum = jnp.array([0.619039, 1.098612, 1.734601, 2.944439])
    grad = jax.grad(lambda d: soft_label_loss(chosen=d, rejected=jnp.zeros(4), probability=probability).sum())
    np.testing.assert_allclose(grad(optimum), 0.0, atol=1e-6)
    np.testing.assert_allclose(grad(jnp.ones(4)), jax.nn.sigmoid(1.0) - probability, atol=1e-6)


def test_a_level_that_does_not_exist_is_nan_and_not_a_neighbours():
    np.testing.assert_array_equal(jnp.isnan(level_probabilities(jnp.array([-1, 0, 4]))), [True, False, True])


def test_grades_cost_their_cross_entropy_summed_over_aspects():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 3))
    grades = jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    every = jax.nn.log_softmax(logits)
    by_hand = [-sum(float(every[b, a, grades[b, a]]) for a in range(4)) for b in range(2)]
    np.testing.assert_allclose(grading_loss(logits, grades=grades), by_hand, rtol=1e-6)


def test_a_grade_that_nobody_gave_has_no_part_in_value_or_gradient():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 3)).at[0, 1].set(jnp.nan)
    graded = jnp.array([[True, False, True, True], [False] * 4])
    loss = jax.jit(lambda z, fill: grading_loss(z, grades=jnp.where(graded, 1, fill), graded=graded))
    np.testing.assert_array_equal(loss(logits, 2), loss(logits, -7))
    assert loss(logits, 2)[1] == 0
    grad = jax.jit(jax.grad(lambda z: loss(z, -7).sum()))(logits)
    np.testing.assert_array_equal(jnp.any(grad != 0, axis=-1), graded)


def test_a_ranking_of_two_is_a_pair_and_of_three_the_mean_of_three_pairs():
    edited, chosen, rejected = rewards = jax.random.normal(jax.random.key(0), (3, 5))
    pairs = [(edited, chosen), (edited, rejected), (chosen, rejected)]
    losses = jnp.stack([bradley_terry_loss(chosen=high, rejected=low) for high, low in pairs])
    ranking = jax.jit(lambda r, ranked: ranking_loss(r, ranked=ranked))
    np.testing.assert_allclose(ranking(rewards.T, jnp.ones((5, 3), bool)), losses.mean(axis=0), rtol=1e-6)
    two = jnp.array([[False, True, True]] * 5)
    np.testing.assert_allclose(ranking(rewards.T.at[:, 0].set(jnp.nan), two), losses[2], rtol=1e-6)


def test_a_ranking_of_less_than_two_responses_costs_nothing():
    ranking = jax.jit(jax.value_and_grad(lambda r: ranking_loss(r, ranked=jnp.array([[True, False]])).sum()))
    loss, grad = ranking(jnp.array([[1.0, jnp.nan]]))
    assert loss == 0
    np.testing.assert_array_equal(grad, [[0.0, 0.0]])


def test_gradients_equal_finite_differences(check_gradient):
    chosen, rejected, margin = np.random.default_rng(0).normal(size=(3, 4))
    check_gradient(lambda c, r, m: bradley_terry_loss(chosen=c, rejected=r, margin=m), chosen, rejected, margin)
    check_gradient(lambda c, r: soft_label_loss(chosen=c, rejected=r, probability=jnp.array([0.65, 0.85, 1, 0])), chosen, rejected)
    check_gradient(lambda r: ranking_loss(r, ranked=jnp.ones((2, 4), bool)), np.stack([chosen, rejected]))
    logits = np.random.default_rng(0).normal(size=(2, 2, 3))
    check_gradient(lambda z: grading_loss(z, grades=jnp.array([[0, 1], [2, 0]])), logits)


def test_accuracy_counts_ties_half():
    accuracy = pairwise_accuracy(chosen=jnp.array([1.0, 1.0, 0.0]), rejected=jnp.array([0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(accuracy, [1.0, 0.5, 0.0])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        bradley_terry_loss(chosen=jnp.zeros((2, 1)), rejected=jnp.zeros(2))
    with pytest.raises(AssertionError):
        soft_label_loss(chosen=jnp.zeros(2), rejected=jnp.zeros(2), probability=jnp.zeros(1))
    with pytest.raises(AssertionError):
        grading_loss(jnp.zeros((2, 4, 3)), grades=jnp.zeros((2, 3), int))
