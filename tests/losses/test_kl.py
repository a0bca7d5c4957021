from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import divergence, kl
from tests.fixtures import tabular

LOGPROBS = arrays(np.float32, 4, elements=st.floats(-30, 0, width=32))
ESTIMATORS = (kl.k1, kl.k2, kl.k3)


def test_estimators_of_known_log_ratios():
    ratios = {"policy": jnp.array([-0.5, 0.2]), "reference": jnp.zeros(2)}
    np.testing.assert_allclose(kl.k1(**ratios), [-0.5, 0.2], rtol=1e-6)
    np.testing.assert_allclose(kl.k2(**ratios), [0.125, 0.02], rtol=1e-6)
    np.testing.assert_allclose(kl.k3(**ratios), [0.148721, 0.018731], atol=1e-6)


@given(LOGPROBS, LOGPROBS)
def test_k2_k3_and_seq_k3_are_not_negative(policy, other):
    for values in (kl.k2(policy=policy, reference=other), kl.k3(policy=policy, reference=other)):
        assert values.dtype == jnp.float32 and jnp.all(values >= 0)
    assert jnp.all(kl.seq_k3(policy=policy, previous=other) >= -1e-7)


@given(LOGPROBS)
def test_all_are_exactly_zero_where_the_policies_agree(policy):
    for estimator in ESTIMATORS:
        np.testing.assert_array_equal(estimator(policy=policy, reference=policy), np.zeros(4))
    np.testing.assert_array_equal(kl.seq_k3(policy=policy, previous=policy), np.zeros(4))


@given(LOGPROBS, LOGPROBS, st.permutations(range(4)))
def test_permuting_the_samples_permutes_the_estimates(policy, other, order):
    order = np.array(order)
    for estimator in ESTIMATORS:
        permuted = estimator(policy=policy[order], reference=other[order])
        np.testing.assert_array_equal(permuted, estimator(policy=policy, reference=other)[order])


def test_k1_and_k3_are_unbiased_on_every_sequence_and_token_by_token(float64):
    policy, reference = tabular.tables(0), tabular.tables(1)
    p, q = tabular.sequence_logprobs(policy), tabular.sequence_logprobs(reference)
    exact = float(tabular.kl(p, q))
    assert exact > 0.1
    by_token = {"policy": tabular.token_logprobs(policy), "reference": tabular.token_logprobs(reference)}
    for estimator in (kl.k1, kl.k3):
        assert tabular.expectation(p, estimator(policy=p, reference=q)) == pytest.approx(exact, rel=1e-12)
        assert tabular.expectation(p, estimator(**by_token).sum(axis=1)) == pytest.approx(exact, rel=1e-12)


def test_as_a_loss_only_k2_has_the_expected_gradient_of_the_kl_it_measures(float64):
    policy, q = tabular.tables(0), tabular.sequence_logprobs(tabular.tables(1))

    def of_loss(estimator):
        def loss(params):
            p = tabular.sequence_logprobs(params)
            return tabular.expectation(p, estimator(policy=p, reference=q))

        return jax.jit(jax.grad(loss))(policy)

    forward = jax.jit(jax.grad(lambda params: tabular.kl(q, tabular.sequence_logprobs(params))))(policy)
    reverse = jax.jit(jax.grad(lambda params: tabular.kl(tabular.sequence_logprobs(params), q)))(policy)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(reverse)) > 0.1
    for name in ("first", "second"):
        np.testing.assert_allclose(of_loss(kl.k1)[name], 0.0, atol=1e-14)
        np.testing.assert_allclose(of_loss(kl.k2)[name], reverse[name], atol=1e-12)
        np.testing.assert_allclose(of_loss(kl.k3)[name], forward[name], atol=1e-12)


def test_seq_k3_is_unbiased_on_samples_of_the_previous_policy_in_value_and_gradient(float64):
    policy, q = tabular.tables(0), tabular.sequence_logprobs(tabular.tables(1))
    estimated = jax.jit(
        jax.value_and_grad(lambda x: tabular.expectation(q, kl.seq_k3(policy=tabular.sequence_logprobs(x), previous=q)))
    )
    exact = jax.jit(jax.value_and_grad(lambda x: tabular.kl(tabular.sequence_logprobs(x), q)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), estimated(policy), exact(policy))


def test_the_whole_vocabulary_form_shares_gradient_and_hessian_with_the_kl_of_sequences_at_the_previous_policy(float64):
    """Away from it the two differ: prefixes are the previous policy's."""
    previous = tabular.tables(0)
    q, q_logits = tabular.sequence_logprobs(previous), tabular.logits(previous)

    def full_vocab(params):
        return tabular.expectation(q, divergence.reverse_kl(q_logits, tabular.logits(params)).sum(axis=1))

    def exact(params):
        return tabular.kl(tabular.sequence_logprobs(params), q)

    for derivative in (lambda f: f, jax.grad, jax.hessian):
        of_both = [jax.jit(derivative(f))(previous) for f in (full_vocab, exact)]
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), *of_both)
    away = tabular.tables(1)
    assert abs(full_vocab(away) - exact(away)) > 1e-3


def test_log_ratios_beyond_the_clamp_stay_finite_in_value_and_gradient():
    policy, other = jnp.array([-1e4, 0.0]), jnp.array([0.0, -1e4])
    functions = (
        lambda p: kl.ratio(p, other),
        lambda p: kl.k3(policy=p, reference=other),
        lambda p: kl.seq_k3(policy=p, previous=other),
    )
    for function in functions:
        assert jnp.all(jnp.isfinite(function(policy)))
        assert jnp.all(jnp.isfinite(jax.grad(lambda p, f=function: f(p).sum())(policy)))
    np.testing.assert_allclose(kl.ratio(policy, other), np.exp([-20.0, 20.0]), rtol=1e-6)
    assert kl.k3(policy=policy, reference=other)[1] == pytest.approx(1e4 - 1)  # exact on the side that cannot overflow


def test_masked_values_reach_neither_estimate_nor_gradient():
    policy, other = jnp.array([[-1.0, jnp.nan], [jnp.inf, -2.0]]), jnp.array([[-2.0, 0.0], [0.0, jnp.nan]])
    mask = jnp.array([[True, False], [False, False]])
    for estimator in ESTIMATORS:
        masked = jax.jit(jax.value_and_grad(lambda p, f=estimator: f(policy=p, reference=other, mask=mask).sum()))
        value, grad = masked(policy)
        assert value == estimator(policy=policy[:1, 0], reference=other[:1, 0])[0] and jnp.isfinite(value)
        np.testing.assert_array_equal(grad != 0, mask)


def test_no_gradient_reaches_the_other_policy():
    p = jnp.array([-1.0, -2.0])
    for estimator in ESTIMATORS:
        grad = jax.grad(lambda q, f=estimator: f(policy=p, reference=q).sum())(jnp.array([-1.5, -1.0]))
        np.testing.assert_array_equal(grad, np.zeros(2))


def test_gradients_equal_finite_differences(check_gradient):
    policy, other = np.random.default_rng(0).normal(size=(2, 4))
    for estimator in (*ESTIMATORS, lambda policy, reference: kl.seq_k3(policy=policy, previous=reference)):
        check_gradient(lambda p, f=estimator: f(policy=p, reference=other), policy)
    check_gradient(lambda p: kl.ratio(p, other), policy)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        kl.k1(policy=jnp.zeros((2, 3)), reference=jnp.zeros((2, 1)))
    with pytest.raises(AssertionError):
        kl.ratio(jnp.zeros((2, 3)), jnp.zeros((2, 3)), mask=jnp.ones((2, 1), bool))
