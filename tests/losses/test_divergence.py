from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lmx.losses import divergence, likelihood

LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-20, 20, width=32))
LABELS = jnp.array([0, 4, 2])
P, Q = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.4, 0.4, 0.2]))


def test_forward_kl_of_known_distributions():
    assert divergence.forward_kl(P, Q)[()] == pytest.approx(0.183787, abs=1e-6)
    assert divergence.forward_kl(Q, P)[()] == pytest.approx(0.192042, abs=1e-6)


def test_forward_kl_is_the_soft_cross_entropy_less_the_teachers_entropy():
    soft = -jnp.sum(jax.nn.softmax(P) * jax.nn.log_softmax(Q))
    assert divergence.forward_kl(P, Q) + likelihood.entropy(P) == pytest.approx(float(soft), abs=1e-6)


def test_forward_kl_of_a_sure_teacher_is_cross_entropy():
    student = jax.random.normal(jax.random.key(0), (3, 5))
    teacher = 1e4 * jax.nn.one_hot(LABELS, 5)
    np.testing.assert_allclose(divergence.forward_kl(teacher, student), likelihood.cross_entropy(student, labels=LABELS), rtol=1e-5)


@given(LOGITS, st.floats(-50, 50), st.floats(0.5, 4.0))
def test_forward_kl_is_zero_without_gradient_where_student_equals_teacher_up_to_a_shift(logits, shift, temperature):
    student = logits + np.float32(shift)
    loss = lambda z: divergence.forward_kl(logits, z, temperature=temperature).sum()  # noqa: E731
    value, grad = jax.value_and_grad(loss)(jnp.asarray(student))
    assert value == pytest.approx(0.0, abs=5e-3)  # T^2 <= 16 times float32 rounding of logits up to 70
    np.testing.assert_allclose(grad, 0.0, atol=2e-4)


@given(LOGITS, LOGITS)
def test_forward_kl_is_not_negative(teacher, student):
    assert jnp.all(divergence.forward_kl(teacher, student) >= -1e-5)


def test_gradient_of_forward_kl_is_temperature_times_the_difference_of_probabilities():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    grad = jax.grad(lambda z: divergence.forward_kl(teacher, z, temperature=3.0).sum())(student)
    np.testing.assert_allclose(grad, 3.0 * (jax.nn.softmax(student / 3) - jax.nn.softmax(teacher / 3)), atol=1e-6)


def test_at_high_temperature_the_gradient_matches_centred_logits():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    grad = jax.grad(lambda z: divergence.forward_kl(teacher, z, temperature=1e3).sum())(student)
    centred = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
    np.testing.assert_allclose(grad, centred / 5, atol=2e-3)  # the limit is reached to order 1 / T


def test_no_gradient_reaches_the_teacher():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    losses = (divergence.forward_kl, divergence.reverse_kl, partial(divergence.jensen_shannon, beta=0.5))
    for loss in losses:
        np.testing.assert_array_equal(jax.grad(lambda z, f=loss: f(z, student).sum())(teacher), np.zeros((3, 5)))


def test_reverse_kl_is_forward_kl_with_the_models_exchanged():
    assert divergence.reverse_kl(P, Q) == pytest.approx(0.192042, abs=1e-6)
    assert divergence.reverse_kl(Q, P) == pytest.approx(0.183787, abs=1e-6)


def test_gradient_of_reverse_kl_weights_each_log_ratio_by_the_students_probability():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    value, grad = divergence.reverse_kl(teacher, student), jax.grad(lambda z: divergence.reverse_kl(teacher, z).sum())(student)
    difference = jax.nn.log_softmax(student) - jax.nn.log_softmax(teacher)
    np.testing.assert_allclose(grad, jax.nn.softmax(student) * (difference - value[:, None]), atol=1e-6)


@pytest.mark.parametrize(("beta", "known"), [(0.1, 0.016518), (0.5, 0.046201), (0.9, 0.017100)])
def test_jensen_shannon_of_known_distributions(beta, known):
    assert divergence.jensen_shannon(P, Q, beta=beta) == pytest.approx(known, abs=1e-6)


def test_jensen_shannon_at_its_ends_is_forward_and_reverse_kl_bit_for_bit():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    for temperature in (1.0, 2.0):
        ends = [divergence.jensen_shannon(teacher, student, beta=beta, temperature=temperature) for beta in (0.0, 1.0)]
        np.testing.assert_array_equal(ends[0], divergence.forward_kl(teacher, student, temperature=temperature))
        np.testing.assert_array_equal(ends[1], divergence.reverse_kl(teacher, student, temperature=temperature))


def test_jensen_shannon_tends_to_its_ends_times_beta(float64):
    teacher, student = np.random.default_rng(0).normal(size=(2, 3, 5))
    near_forward = divergence.jensen_shannon(teacher, student, beta=1e-6) / 1e-6
    near_reverse = divergence.jensen_shannon(teacher, student, beta=1 - 1e-6) / 1e-6
    np.testing.assert_allclose(near_forward, divergence.forward_kl(teacher, student), rtol=1e-4)
    np.testing.assert_allclose(near_reverse, divergence.reverse_kl(teacher, student), rtol=1e-4)


@given(LOGITS, LOGITS)
def test_jensen_shannon_of_even_weights_is_symmetric_and_at_most_log_2(teacher, student):
    value = divergence.jensen_shannon(teacher, student, beta=0.5)
    np.testing.assert_allclose(value, divergence.jensen_shannon(student, teacher, beta=0.5), atol=1e-6)
    assert jnp.all(value >= -1e-6) and jnp.all(value <= np.log(2) + 1e-6)


@given(LOGITS, LOGITS, st.floats(-20, 20, width=32))
def test_reverse_kl_and_jensen_shannon_are_blind_to_a_shift(teacher, student, shift):
    for loss in (divergence.reverse_kl, partial(divergence.jensen_shannon, beta=0.3)):
        np.testing.assert_allclose(loss(teacher + shift, student), loss(teacher, student), atol=1e-4)


def test_every_divergence_is_zero_without_gradient_where_student_equals_teacher():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    for loss in (divergence.reverse_kl, *(partial(divergence.jensen_shannon, beta=beta) for beta in (0.0, 0.1, 0.5, 1.0))):
        value, grad = jax.jit(jax.value_and_grad(lambda z, f=loss: f(logits, z).sum()))(logits)
        assert value == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(grad, 0.0, atol=1e-6)


def test_tokens_that_neither_model_may_choose_add_nothing():
    """Rows of the table without a token are masked by -inf in both."""
    pad = lambda x: jnp.concatenate([x, jnp.full((3, 2), -jnp.inf)], axis=1)  # noqa: E731
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    losses = (divergence.forward_kl, divergence.reverse_kl, partial(divergence.jensen_shannon, beta=0.5))
    for loss in losses:
        value, grad = jax.jit(jax.value_and_grad(lambda z, f=loss: f(pad(teacher), z).sum()))(pad(student))
        np.testing.assert_allclose(value, loss(teacher, student).sum(), rtol=1e-6)
        expected = jax.jit(jax.grad(lambda z, f=loss: f(teacher, z).sum()))(student)
        np.testing.assert_allclose(grad, jnp.pad(expected, ((0, 0), (0, 2))), atol=1e-6)


def test_top1_mix_is_cross_entropy_where_the_teacher_agrees_with_the_label():
    student = jax.random.normal(jax.random.key(0), (3, 5))
    mixed = divergence.top1_mix(jax.nn.one_hot(LABELS, 5), student, labels=LABELS, weight=0.9)
    np.testing.assert_allclose(mixed, likelihood.cross_entropy(student, labels=LABELS), rtol=1e-6)


def test_top1_mix_of_weight_zero_is_cross_entropy_bit_for_bit():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    mixed = divergence.top1_mix(teacher, student, labels=LABELS, weight=0.0)
    np.testing.assert_array_equal(mixed, likelihood.cross_entropy(student, labels=LABELS))


def test_top1_mix_by_hand_where_the_teacher_differs():
    mixed = divergence.top1_mix(jnp.array([[0.0, 1.0, 0.0]]), P[None], labels=jnp.array([2]), weight=0.9)
    assert mixed[0] == pytest.approx(-0.9 * np.log(0.2) - 0.1 * np.log(0.1), rel=1e-6)


def test_gradient_of_top1_mix_is_softmax_minus_the_mixed_target():
    teacher, student = jax.random.normal(jax.random.key(0), (2, 3, 5))
    grad = jax.grad(lambda z: divergence.top1_mix(teacher, z, labels=LABELS, weight=0.9).sum())(student)
    target = 0.9 * jax.nn.one_hot(teacher.argmax(-1), 5) + 0.1 * jax.nn.one_hot(LABELS, 5)
    np.testing.assert_allclose(grad, jax.nn.softmax(student) - target, atol=1e-6)


def test_the_expected_optimum_of_top1_mix_costs_true_labels_what_the_spec_says():
    p = np.array([0.7, 0.2, 0.1])
    optimum = 0.9 * np.array([1.0, 0.0, 0.0]) + 0.1 * p  # (.97, .02, .01)
    grad = jax.grad(lambda z: divergence.top1_mix(P[None].repeat(3, 0), z[None].repeat(3, 0), labels=jnp.arange(3), weight=0.9) @ p)
    np.testing.assert_allclose(grad(jnp.log(optimum)), 0.0, atol=1e-6)
    assert -p @ np.log(optimum) == pytest.approx(1.264243, abs=1e-6)


def test_gradients_equal_finite_differences(check_gradient):
    teacher, student = np.random.default_rng(0).normal(size=(2, 3, 5))
    check_gradient(partial(divergence.forward_kl, teacher, temperature=2.0), student)
    check_gradient(partial(divergence.reverse_kl, teacher, temperature=2.0), student)
    check_gradient(partial(divergence.jensen_shannon, teacher, beta=0.3, temperature=2.0), student)
    check_gradient(partial(divergence.top1_mix, teacher, labels=LABELS, weight=0.9), student)


def test_logits_over_different_vocabularies_are_refused():
    with pytest.raises(AssertionError):
        divergence.forward_kl(jnp.zeros((3, 5)), jnp.zeros((3, 6)))


def test_a_mixture_weight_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="beta=1.5"):
        divergence.jensen_shannon(P, Q, beta=1.5)


def test_a_weight_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="weight=1.5"):
        divergence.top1_mix(P[None], Q[None], labels=jnp.array([0]), weight=1.5)
