from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from lmx.losses.preference import dpo_loss

LOGPROBS = st.floats(-50, 0, width=32)
NAMES = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")


def dpo(*values: float, **options: float) -> jax.Array:
    return dpo_loss(**{name: jnp.array([value], jnp.float32) for name, value in zip(NAMES, values, strict=True)}, **options)[0]


@given(LOGPROBS, LOGPROBS, st.floats(0.01, 5), st.floats(0, 0.49))
def test_dpo_is_log2_when_policy_equals_reference(chosen, rejected, beta, smoothing):
    assert dpo(chosen, rejected, chosen, rejected, beta=beta, label_smoothing=smoothing) == pytest.approx(np.log(2), abs=1e-6)


def test_dpo_of_a_known_margin():
    assert dpo(-1.0, -1.3, -2.0, -2.0, beta=0.1) == pytest.approx(0.678260, abs=1e-6)


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(0, 0.49))
def test_swapping_the_responses_mirrors_the_smoothing(a, b, c, d, smoothing):
    loss = float(dpo(a, b, c, d, beta=0.1, label_smoothing=smoothing))
    assert dpo(b, a, d, c, beta=0.1, label_smoothing=1 - smoothing) == pytest.approx(loss, rel=1e-5)


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(-10, 10))
def test_a_constant_on_both_policy_logprobs_changes_nothing(a, b, c, d, shift):
    assert dpo(a + shift, b + shift, c, d, beta=0.1) == pytest.approx(float(dpo(a, b, c, d, beta=0.1)), abs=1e-5)


def test_the_gradient_at_the_reference_is_beta_times_smoothing_less_a_half():
    grad = jax.grad(lambda chosen: dpo(chosen, -2.0, -1.0, -2.0, beta=0.1, label_smoothing=0.2))(-1.0)
    assert grad == pytest.approx(0.1 * (0.2 - 0.5), abs=1e-7)


def test_the_smoothed_optimum_is_the_logit_of_the_smoothing():
    margin = np.log(0.8 / 0.2) / 0.1
    grad = jax.grad(lambda chosen: dpo(chosen, 0.0, 0.0, 0.0, beta=0.1, label_smoothing=0.2))(float(margin))
    assert grad == pytest.approx(0.0, abs=1e-7)


def test_no_gradient_reaches_the_reference():
    grads = jax.grad(lambda c, r: dpo(-1.0, -2.0, c, r, beta=0.1), argnums=(0, 1))(-1.5, -1.0)
    assert grads == (0.0, 0.0)


def test_large_margins_stay_finite():
    value, grad = jax.value_and_grad(lambda chosen: dpo(chosen, 0.0, 0.0, 0.0, beta=1.0))(-1e4)
    assert value == pytest.approx(1e4) and grad == pytest.approx(-1.0)


def test_permuting_the_pairs_permutes_the_losses():
    values = dict(zip(NAMES, jax.random.normal(jax.random.key(0), (4, 5)), strict=True))
    order = jnp.array([3, 0, 4, 1, 2])
    permuted = dpo_loss(**{name: value[order] for name, value in values.items()}, beta=0.1)
    np.testing.assert_array_equal(permuted, dpo_loss(**values, beta=0.1)[order])


def test_gradients_equal_finite_differences(check_gradient):
    policy_chosen, policy_rejected, *reference = np.random.default_rng(0).normal(size=(4, 3))
    loss = partial(dpo_loss, reference_chosen=reference[0], reference_rejected=reference[1], beta=0.5, label_smoothing=0.1)
    check_gradient(lambda c, r: loss(policy_chosen=c, policy_rejected=r), policy_chosen, policy_rejected)


def test_dpo_on_bradley_terry_preferences_reaches_the_optimum_of_reward_less_kl():
    """On a bandit of three arms, all pairs weighted by their Bradley-Terry probability, pi goes to pi_ref exp(r / beta)."""
    rewards, reference, beta = jnp.array([1.0, 0.0, -1.0]), jnp.log(jnp.array([0.2, 0.5, 0.3])), 0.5
    winner, loser = (ids.ravel() for ids in jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij"))
    weights = jax.nn.sigmoid(rewards[winner] - rewards[loser])

    def loss(logits: jax.Array) -> jax.Array:
        policy = jax.nn.log_softmax(logits)
        losses = dpo_loss(
            policy_chosen=policy[winner],
            policy_rejected=policy[loser],
            reference_chosen=reference[winner],
            reference_rejected=reference[loser],
            beta=beta,
        )
        return jnp.sum(weights * losses)

    logits = jax.lax.fori_loop(0, 2000, lambda _, z: z - 1.0 * jax.grad(loss)(z), jnp.zeros(3))
    np.testing.assert_allclose(jax.nn.softmax(logits), [0.732165, 0.247720, 0.020115], atol=1e-3)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        dpo_loss(
            policy_chosen=jnp.zeros(2),
            policy_rejected=jnp.zeros(2),
            reference_chosen=jnp.zeros(1),
            reference_rejected=jnp.zeros(2),
            beta=0.1,
        )
