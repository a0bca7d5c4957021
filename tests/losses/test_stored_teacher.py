"""What is kept of a teacher, and the losses against it: identities with the whole distribution, bounds and unbiasedness."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import divergence, likelihood, stored_teacher

LOGITS = arrays(np.float32, (2, 5), elements=st.floats(-20, 20, width=32))
P = jnp.log(jnp.array([0.7, 0.2, 0.1]))
TEACHER, STUDENT = jax.random.normal(jax.random.key(0), (2, 3, 9)) * 2


def stored(teacher, k, temperature=1.0):
    kept = stored_teacher.top_logprobs(teacher, k=k, temperature=temperature)
    return {"ids": kept["ids"], "logprobs": kept["logprobs"], "tail": kept["tail"]}


def renormalised(student, *, tail, **kept):
    del tail
    return stored_teacher.renormalised_kl(student, **kept)


def test_what_is_kept_of_a_known_distribution():
    kept = stored_teacher.top_logprobs(jnp.log(jnp.array([0.1, 0.7, 0.2])), k=2)
    np.testing.assert_array_equal(kept["ids"], [1, 2])
    np.testing.assert_allclose(jnp.exp(kept["logprobs"]), [0.7, 0.2], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(kept["tail"]), 0.1, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("loss", [stored_teacher.tail_kl, renormalised])
def test_with_the_whole_vocabulary_it_is_the_whole_divergence_in_value_and_gradient(loss, temperature):
    kept = stored(TEACHER, 9, temperature)
    actual = jax.value_and_grad(lambda z: loss(z, **kept, temperature=temperature).sum())(STUDENT)
    whole = jax.value_and_grad(lambda z: divergence.forward_kl(TEACHER, z, temperature=temperature).sum())(STUDENT)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, whole)


@given(LOGITS, LOGITS, st.integers(1, 5))
def test_a_tail_bucket_is_a_lower_bound_that_rises_to_the_whole_divergence(teacher, student, k):
    whole = divergence.forward_kl(teacher, student)
    bound = stored_teacher.tail_kl(student, **stored(teacher, k))
    assert np.all(bound <= whole + 1e-4) and np.all(bound >= -1e-5)
    if k < 5:
        assert np.all(bound <= stored_teacher.tail_kl(student, **stored(teacher, k + 1)) + 1e-4)


@given(LOGITS, st.floats(-50, 50), st.integers(1, 5))
def test_a_tail_bucket_is_zero_where_student_equals_teacher_up_to_a_shift(teacher, shift, k):
    np.testing.assert_allclose(stored_teacher.tail_kl(teacher + np.float32(shift), **stored(teacher, k)), 0.0, atol=2e-4)


def test_renormalised_a_student_equal_to_its_teacher_is_still_pushed_away():
    kept = stored(TEACHER, 3)
    own = jax.grad(lambda z: renormalised(z, **kept).sum())(TEACHER)
    tail = jax.grad(lambda z: stored_teacher.tail_kl(z, **kept).sum())(TEACHER)
    assert np.abs(own).max() > 0.01
    np.testing.assert_allclose(tail, 0.0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_gradients_are_those_of_finite_differences(k, check_gradient):
    kept = {name: np.asarray(x[:1]) for name, x in stored(TEACHER, k).items()}
    for loss in (stored_teacher.tail_kl, renormalised):
        check_gradient(lambda z, loss=loss: loss(z, **kept, temperature=1.5), STUDENT[:1])


def test_no_gradient_reaches_what_is_stored():
    kept = stored(TEACHER, 3)
    moving = lambda logprobs, tail: stored_teacher.tail_kl(STUDENT, ids=kept["ids"], logprobs=logprobs, tail=tail).sum()  # noqa: E731
    assert not any(np.any(g) for g in jax.grad(moving, argnums=(0, 1))(kept["logprobs"], kept["tail"]))


def test_every_token_drawn_once_in_a_hundred_thousand_gives_the_entropy_of_the_golden():
    counts = jnp.array([70_000, 20_000, 10_000])
    loss = stored_teacher.sampled_cross_entropy(P, ids=jnp.arange(3), counts=counts)
    assert loss == pytest.approx(0.801818553, abs=1e-6)


@pytest.mark.parametrize("k", [1, 4, 32])
def test_samples_are_unbiased_for_the_cross_entropy(k):
    draws = 100_000
    teacher = jax.random.normal(jax.random.key(5), (700,)) * 3  # two blocks of the sampler, one of them not full
    student = jax.random.normal(jax.random.key(6), (700,))
    uniforms = jax.random.uniform(jax.random.key(k), (draws // k, k, 2))
    ids = jax.lax.map(lambda u: stored_teacher.sample_ids(teacher, uniforms=u), uniforms, batch_size=1_000)
    logq = jax.nn.log_softmax(student)
    losses = np.asarray(jax.jit(jax.vmap(lambda i: -logq[i].mean()))(ids), np.float64)
    one = stored_teacher.sampled_cross_entropy(student, ids=ids[0], counts=jnp.ones(k))
    assert one == pytest.approx(losses[0], rel=1e-5)
    exact = float(-jnp.sum(jax.nn.softmax(teacher) * logq))
    assert abs(losses.mean() - exact) < 4 * losses.std() / np.sqrt(len(losses))


def test_samples_come_as_often_as_they_are_probable():
    teacher = jnp.log(jnp.array([0.5, 0.25, 1e-30, 0.2, 0.05]))
    ids = stored_teacher.sample_ids(teacher, uniforms=jax.random.uniform(jax.random.key(0), (40_000, 2)))
    shares = np.bincount(ids, minlength=5) / 40_000
    expected = np.array([0.5, 0.25, 0.0, 0.2, 0.05])
    assert np.all(np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / 40_000))


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval_draw_tokens_that_exist(uniform):
    teacher = jnp.full((600,), -jnp.inf).at[jnp.array([3, 520])].set(0.0)
    ids = stored_teacher.sample_ids(teacher, uniforms=jnp.full((1, 2), uniform))
    assert ids[0] == (3 if uniform == 0 else 520)


def test_one_sample_is_next_token_training_on_the_teachers_tokens():
    ids = jnp.array([[4], [0], [7]])
    loss = lambda z: stored_teacher.sampled_cross_entropy(z, ids=ids, counts=jnp.ones((3, 1))).sum()  # noqa: E731
    plain = lambda z: likelihood.cross_entropy(z, labels=ids[:, 0]).sum()  # noqa: E731
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), *(jax.value_and_grad(f)(STUDENT) for f in (loss, plain))
    )


def test_slots_without_a_draw_are_not_read():
    padded = stored_teacher.sampled_cross_entropy(STUDENT, ids=jnp.array([[1, 2, 0]] * 3), counts=jnp.array([[3.0, 1.0, 0.0]] * 3))
    whole = stored_teacher.sampled_cross_entropy(STUDENT, ids=jnp.array([[1, 1, 1, 2]] * 3), counts=jnp.ones((3, 4)))
    np.testing.assert_allclose(padded, whole, rtol=1e-6)


def test_more_tokens_than_the_vocabulary_has_are_refused():
    with pytest.raises(ValueError, match=r"k=10 must lie in 1\.\.9"):
        stored_teacher.top_logprobs(TEACHER, k=10)
