from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import likelihood

LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-20, 20, width=32))
LABELS = jnp.array([0, 4, 2])
P = jnp.array([0.7, 0.2, 0.1])


def test_cross_entropy_is_minus_the_log_of_the_labels_probability():
    losses = likelihood.cross_entropy(jnp.log(P)[None].repeat(3, 0), labels=jnp.arange(3))
    np.testing.assert_allclose(losses, -np.log(P), rtol=1e-6)


def test_cross_entropy_of_uniform_logits_is_log_v():
    assert likelihood.cross_entropy(jnp.zeros((1, 8)), labels=jnp.array([3]))[0] == pytest.approx(np.log(8))


def test_z_loss_adds_the_squared_log_normalizer():
    logits = jnp.array([[1.0, 2.0, 0.5]])
    plain, penalized = (likelihood.cross_entropy(logits, labels=jnp.array([1]), z_loss=z) for z in (0.0, 0.1))
    assert penalized[0] - plain[0] == pytest.approx(0.1 * np.log(np.exp([1.0, 2.0, 0.5]).sum()) ** 2, rel=1e-5)


def test_z_loss_is_the_only_part_that_sees_a_shift():
    logits = jnp.array([[1.0, 2.0, 0.5]])
    gradient = jax.grad(lambda shift: likelihood.cross_entropy(logits + shift, labels=jnp.array([1]), z_loss=0.1).sum())(0.0)
    assert gradient == pytest.approx(0.2 * np.log(np.exp([1.0, 2.0, 0.5]).sum()), rel=1e-5)


@given(LOGITS, st.floats(-50, 50))
def test_cross_entropy_and_entropy_ignore_a_shift_of_the_logits(logits, shift):
    shifted = logits + np.float32(shift)
    for loss in (partial(likelihood.cross_entropy, labels=LABELS), likelihood.entropy):
        np.testing.assert_allclose(loss(shifted), loss(logits), atol=2e-4)  # float32 at logits up to 70


@given(LOGITS, st.permutations(range(5)))
def test_renaming_the_tokens_changes_nothing(logits, permutation):
    permutation = np.array(permutation)
    renamed = likelihood.cross_entropy(logits[:, np.argsort(permutation)], labels=jnp.asarray(permutation[np.asarray(LABELS)]))
    np.testing.assert_allclose(renamed, likelihood.cross_entropy(logits, labels=LABELS), atol=1e-5)


@given(LOGITS, st.permutations(range(3)))
def test_permuting_the_batch_permutes_the_losses(logits, order):
    order = np.array(order)
    permuted = likelihood.cross_entropy(logits[order], labels=LABELS[order])
    np.testing.assert_array_equal(permuted, likelihood.cross_entropy(logits, labels=LABELS)[order])


@given(LOGITS)
def test_entropy_lies_between_zero_and_log_v(logits):
    entropy = likelihood.entropy(logits)
    assert jnp.all(entropy >= 0) and jnp.all(entropy <= np.log(5) + 1e-5)


def test_entropy_of_a_known_distribution():
    assert likelihood.entropy(jnp.log(P))[()] == pytest.approx(0.801818553, abs=1e-6)


def test_token_logprobs_are_minus_the_cross_entropy_and_sum_to_one():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    every = jnp.stack([likelihood.token_logprobs(logits, jnp.full((2, 3), v)) for v in range(5)])
    np.testing.assert_allclose(jnp.exp(every).sum(0), np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(every[4], -likelihood.cross_entropy(logits, labels=jnp.full((2, 3), 4)), rtol=1e-6)


def test_gradient_of_cross_entropy_is_softmax_minus_onehot():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    grad = jax.grad(lambda z: likelihood.cross_entropy(z, labels=LABELS).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - jax.nn.one_hot(LABELS, 5), atol=1e-6)


def test_gradients_equal_finite_differences(check_gradient):
    logits = np.random.default_rng(0).normal(size=(3, 5))
    check_gradient(partial(likelihood.cross_entropy, labels=LABELS, z_loss=0.1), logits)
    check_gradient(likelihood.entropy, logits)


def test_bfloat16_logits_give_float32_losses():
    logits = jax.random.normal(jax.random.key(0), (3, 5), jnp.bfloat16)
    loss = likelihood.cross_entropy(logits, labels=LABELS)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, likelihood.cross_entropy(logits.astype(jnp.float32), labels=LABELS))


def test_top1_hits_count_the_label_with_the_largest_logit():
    logits = jnp.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(likelihood.top1_hits(logits, jnp.array([1, 2, 1])), [1.0, 0.0, 1.0])


def test_labels_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        likelihood.cross_entropy(jnp.zeros((2, 3, 5)), labels=jnp.zeros((2, 1), jnp.int32))
