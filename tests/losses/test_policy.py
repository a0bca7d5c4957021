"""Losses of policy gradient on a language model of nine sequences, where the expectation over samples is a sum."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import advantages, divergence, kl, masking, policy
from tests.fixtures import tabular

REWARDS = np.random.default_rng(7).normal(size=9)
BETA = 0.3
LOGPROBS = arrays(np.float32, (2, 3), elements=st.floats(-5, 0, width=32))


def assert_trees_close(actual, expected, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), actual, expected)


def size(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def exact_gradient(params, reference):
    """Of E[r] - beta KL(policy || reference)."""

    def value(params):
        p = tabular.sequence_logprobs(params)
        return jnp.sum(jnp.exp(p) * REWARDS) - BETA * tabular.kl(p, reference)

    return jax.jit(jax.grad(value))(params)


def shaped(p, reference):
    return advantages.shaped_rewards(jnp.asarray(REWARDS), policy=p, reference=reference, beta=BETA)


def test_reinforce_on_shaped_rewards_ascends_reward_less_kl_whatever_the_baseline(float64):
    params, reference = tabular.tables(0), tabular.sequence_logprobs(tabular.tables(1))

    @jax.jit
    @jax.grad
    def expected(params, baseline):
        p = tabular.sequence_logprobs(params)
        return tabular.expectation(p, policy.reinforce_loss(policy=p, advantages=shaped(p, reference) - baseline))

    for baseline in (0.0, 3.0):
        assert_trees_close(jax.tree.map(jnp.negative, expected(params, baseline)), exact_gradient(params, reference))


def test_without_its_shaping_reinforce_ascends_the_reward_alone(float64):
    p = jnp.asarray(np.random.default_rng(0).normal(size=9))
    loss = lambda z: tabular.expectation(  # noqa: E731
        jax.nn.log_softmax(z), policy.reinforce_loss(policy=jax.nn.log_softmax(z), advantages=jnp.asarray(REWARDS))
    )
    expected = -jax.jit(jax.grad(lambda z: jax.nn.softmax(z) @ REWARDS))(p)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(p), expected, atol=1e-12)


def test_the_gradient_vanishes_at_reference_times_exp_of_reward_over_beta(float64):
    reference = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(1).normal(size=9)))

    def expected(logits):
        p = jax.nn.log_softmax(logits)
        return tabular.expectation(p, policy.reinforce_loss(policy=p, advantages=shaped(p, reference)))

    np.testing.assert_allclose(jax.jit(jax.grad(expected))(reference + REWARDS / BETA), 0.0, atol=1e-12)
    assert size(jax.grad(expected)(reference)) > 0.01


def groups_of_two(p):
    """All 81 groups of two sampled sequences: their indices [81, 2] and probabilities [81]."""
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(9), jnp.arange(9), indexing="ij"), axis=-1).reshape(81, 2)
    return pairs, jax.lax.stop_gradient(jnp.exp(p[pairs].sum(axis=1)))


def test_rloo_is_unbiased_at_the_smallest_group(float64):
    params, reference = tabular.tables(0), tabular.sequence_logprobs(tabular.tables(1))

    @jax.jit
    @jax.grad
    def expected(params):
        p = tabular.sequence_logprobs(params)
        pairs, probabilities = groups_of_two(p)
        own = advantages.leave_one_out(shaped(p, reference)[pairs])
        return probabilities @ policy.reinforce_loss(policy=p[pairs], advantages=own).mean(axis=1)

    assert_trees_close(jax.tree.map(jnp.negative, expected(params)), exact_gradient(params, reference))


def previous_kls(params, previous):
    """The two estimates of KL(policy || previous) of each sequence [9], and the one that is not offered."""
    p, q = tabular.sequence_logprobs(params), tabular.sequence_logprobs(previous)
    by_token = divergence.reverse_kl(tabular.logits(previous), tabular.logits(params))
    log_rho = p - jax.lax.stop_gradient(q)
    return {
        "full_vocab": masking.sequence_sum(by_token, jnp.ones((9, 2), bool)),
        "seq_k3": kl.seq_k3(policy=p, previous=q),
        "naive": jnp.exp(log_rho) * log_rho,
    }


def mirror_descent(params, previous, own, *, gamma, estimator):
    return policy.mirror_descent_loss(
        policy=tabular.sequence_logprobs(params),
        previous=tabular.sequence_logprobs(previous),
        advantages=own,
        previous_kl=previous_kls(params, previous)[estimator],
        gamma=gamma,
    )


def first_step_gaps(params, own):
    """By estimator, how far the first mirror-descent gradient is from RLOO's, at worst over the nine samples."""

    def differences(x):  # [9] each; their Jacobian is the difference of the gradients
        plain = policy.reinforce_loss(policy=tabular.sequence_logprobs(x), advantages=own)
        names = ("full_vocab", "seq_k3", "naive")
        return {name: mirror_descent(x, params, own, gamma=2.0, estimator=name) - plain for name in names}

    return {name: size(gap) for name, gap in jax.jit(jax.jacrev(differences))(params).items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_the_first_mirror_descent_step_is_that_of_rloo_on_every_sample(float64, dtype, tolerance):
    params = jax.tree.map(lambda x: x.astype(dtype), tabular.tables(0))
    gaps = first_step_gaps(params, advantages.leave_one_out(jnp.asarray(REWARDS, dtype)[None])[0])
    assert gaps["full_vocab"] < tolerance and gaps["seq_k3"] < tolerance
    assert gaps["naive"] > 0.1  # why rho log rho is not offered


def test_without_the_trust_region_it_is_the_importance_weighted_gradient(float64):
    """On samples of the previous policy, rho * grad log policy has the expectation of the policy's own gradient."""
    params, previous = tabular.tables(0), tabular.tables(1)
    q = tabular.sequence_logprobs(previous)
    weighted = jax.jit(
        jax.grad(lambda x: tabular.expectation(q, mirror_descent(x, previous, jnp.asarray(REWARDS), gamma=0.0, estimator="seq_k3")))
    )(params)
    expected = jax.jit(jax.grad(lambda x: -jnp.sum(jnp.exp(tabular.sequence_logprobs(x)) * REWARDS)))(params)
    assert_trees_close(weighted, expected)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1.0, 1.3, False), (1.0, 0.7, True), (-1.0, 1.3, True), (-1.0, 0.7, False), (1.0, 1.1, True), (-1.0, 0.9, True)],
)
def test_the_clip_stops_a_ratio_on_the_side_its_advantage_asks_for_only(advantage, ratio, moves):
    values = {"previous": jnp.zeros(1), "advantages": jnp.array([advantage])}
    clipped = jax.jit(jax.value_and_grad(lambda p: policy.clipped_surrogate_loss(policy=p, **values)[0]))
    loss, grad = clipped(jnp.log(jnp.array([ratio])))
    assert grad[0] == pytest.approx(-advantage * ratio if moves else 0.0, rel=1e-6)
    assert loss == pytest.approx(-advantage * (ratio if moves else np.clip(ratio, 0.8, 1.2)), rel=1e-6)
    assert policy.is_clipped(policy=jnp.log(jnp.array([ratio])), **values)[0] == (not moves)


def test_unequal_clips_bound_their_own_side():
    options = {"previous": jnp.zeros(2), "clip_low": 0.1, "clip_high": 0.5}
    at = jnp.log(jnp.array([1.4, 0.85]))
    np.testing.assert_array_equal(policy.is_clipped(policy=at, advantages=jnp.array([1.0, -1.0]), **options), [0.0, 1.0])
    loss = policy.clipped_surrogate_loss(policy=at, advantages=jnp.array([1.0, -1.0]), **options)
    np.testing.assert_allclose(loss, [-1.4, 0.9], rtol=1e-6)


def test_at_ratio_one_the_clipped_gradient_is_that_of_reinforce():
    logprobs, own = -jnp.abs(jax.random.normal(jax.random.key(0), (20, 3))), jax.random.normal(jax.random.key(1), (20,))
    for values in (logprobs, logprobs.sum(axis=1)):  # ratios of tokens, then of sequences
        clipped = lambda p, v=values: policy.clipped_surrogate_loss(policy=p, previous=v, advantages=own).sum()  # noqa: E731
        plain = lambda p: policy.reinforce_loss(policy=p, advantages=own).sum()  # noqa: E731
        np.testing.assert_allclose(*(jax.jit(jax.grad(loss))(values) for loss in (clipped, plain)), rtol=1e-6)


@given(LOGPROBS, LOGPROBS, LOGPROBS)
def test_without_a_bound_the_clipped_surrogate_is_the_importance_weighted_one(new, old, own):
    wide = policy.clipped_surrogate_loss(policy=new, previous=old, advantages=own, clip_low=1.0, clip_high=1e9)
    np.testing.assert_allclose(wide, -np.exp(new - old) * own, rtol=1e-5)


@given(LOGPROBS, LOGPROBS, arrays(np.bool_, (2, 3)), st.permutations(range(2)))
def test_masked_tokens_drop_out_and_rows_permute(new, old, mask, order):
    own, order, mask = jnp.array([1.0, -2.0]), np.array(order), jnp.asarray(mask)
    clean = policy.clipped_surrogate_loss(policy=new, previous=old, advantages=own)
    soiled = {"policy": jnp.where(mask, new, jnp.nan), "previous": jnp.where(mask, old, jnp.inf)}
    result = policy.clipped_surrogate_loss(**soiled, advantages=own, mask=mask)
    np.testing.assert_array_equal(result, jnp.where(mask, clean, 0.0))
    permuted = policy.clipped_surrogate_loss(policy=new[order], previous=old[order], advantages=own[order])
    np.testing.assert_array_equal(permuted, clean[order])
    np.testing.assert_array_equal(
        policy.reinforce_loss(policy=soiled["policy"], advantages=own, mask=mask), jnp.where(mask, -own[:, None] * new, 0.0)
    )


def test_masked_nan_reaches_no_gradient():
    values, mask = jnp.array([[-1.0, jnp.nan]]), jnp.array([[True, False]])
    own = jnp.array([2.0])
    losses = (
        lambda p: policy.reinforce_loss(policy=p, advantages=own, mask=mask),
        lambda p: policy.clipped_surrogate_loss(policy=p, previous=values, advantages=own, mask=mask),
    )
    for loss in losses:
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda p, f=loss: f(p).sum()))(values), [[-2.0, 0.0]])


def test_an_advantage_of_a_sequence_holds_for_each_of_its_tokens():
    new, old = jax.random.normal(jax.random.key(0), (2, 2, 3))
    own = jnp.array([1.0, -2.0])
    whole = policy.clipped_surrogate_loss(policy=new, previous=old, advantages=own)
    np.testing.assert_array_equal(
        whole, policy.clipped_surrogate_loss(policy=new, previous=old, advantages=jnp.repeat(own[:, None], 3, axis=1))
    )


def test_averages_over_tokens_agree_where_sequences_are_equally_long_and_differ_where_they_are_not():
    """GRPO's mean of means, and one mean over all tokens; they are reductions of the same losses."""
    losses = policy.reinforce_loss(policy=jax.random.normal(jax.random.key(0), (2, 4)), advantages=jnp.array([1.0, -1.0]))
    full, ragged = jnp.ones((2, 4), bool), jnp.array([[True] * 4, [True] + [False] * 3])
    means = lambda mask: (masking.sequence_mean(losses, mask).mean(), masking.masked_mean(losses, mask))  # noqa: E731
    assert means(full)[0] == pytest.approx(float(means(full)[1]), rel=1e-5)
    assert abs(means(ragged)[0] - means(ragged)[1]) > 1e-2


def test_no_gradient_reaches_advantages_or_the_previous_policy():
    names = ("previous", "advantages")
    values = {name: jnp.array([-1.0, 0.5]) for name in names}
    now = jnp.array([-0.9, 0.6])
    losses = (
        lambda v: policy.clipped_surrogate_loss(policy=now, **v),
        lambda v: policy.reinforce_loss(policy=now, advantages=v["advantages"]),
        lambda v: policy.mirror_descent_loss(policy=now, **v, previous_kl=jnp.zeros(2), gamma=1.0),
    )
    for loss in losses:
        assert size(jax.jit(jax.grad(lambda v, f=loss: f(v).sum()))(values)) == 0


def test_gradients_equal_finite_differences(check_gradient):
    new, old, own = np.random.default_rng(0).normal(size=(3, 4))
    check_gradient(lambda p: policy.reinforce_loss(policy=p, advantages=jnp.asarray(own)), new)
    check_gradient(lambda p: policy.clipped_surrogate_loss(policy=p, previous=old, advantages=jnp.asarray(own)), new)
    check_gradient(
        lambda p, d: policy.mirror_descent_loss(policy=p, previous=old, advantages=jnp.asarray(own), previous_kl=d, gamma=0.7),
        *(new, own),
    )


def test_hyperparameters_out_of_range_are_refused():
    values = {"policy": jnp.zeros(2), "previous": jnp.zeros(2), "advantages": jnp.zeros(2)}
    with pytest.raises(ValueError, match="clip_low=0"):
        policy.clipped_surrogate_loss(**values, clip_low=0.0)
    with pytest.raises(ValueError, match="gamma=-1"):
        policy.mirror_descent_loss(**values, previous_kl=jnp.zeros(2), gamma=-1.0)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        policy.reinforce_loss(policy=jnp.zeros((2, 3)), advantages=jnp.zeros(3))
    with pytest.raises(AssertionError):
        policy.mirror_descent_loss(
            policy=jnp.zeros(2), previous=jnp.zeros(2), advantages=jnp.zeros(2), previous_kl=jnp.zeros(()), gamma=1.0
        )
