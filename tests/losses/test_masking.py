import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.losses import masking


def test_masked_mean_equals_the_mean_of_the_values_that_count():
    values, mask = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), jnp.array([[True, False, True], [False, False, True]])
    assert masking.masked_mean(values, mask) == pytest.approx((1 + 3 + 6) / 3)
    np.testing.assert_allclose(masking.masked_mean(values, mask, axis=1), [2.0, 6.0])


def test_masked_nan_reaches_neither_value_nor_gradient():
    values, mask = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([True, False, False])
    value, grad = jax.value_and_grad(lambda x: masking.masked_mean(x, mask))(values)
    assert value == 1.0
    np.testing.assert_array_equal(grad, [1.0, 0.0, 0.0])


def test_an_empty_mask_has_mean_zero_and_zero_gradient():
    value, grad = jax.value_and_grad(lambda x: masking.masked_mean(x, jnp.zeros(3, bool)))(jnp.ones(3))
    assert value == 0.0
    np.testing.assert_array_equal(grad, np.zeros(3))


def test_sequence_sum_adds_the_tokens_of_each_row_in_float32():
    values = jnp.full((2, 3), 0.1, jnp.bfloat16)
    sums = masking.sequence_sum(values, jnp.array([[True, True, True], [False, True, False]]))
    assert sums.dtype == jnp.float32
    np.testing.assert_allclose(sums, np.float32(jnp.bfloat16(0.1)) * np.array([3.0, 1.0]), rtol=1e-6)


def test_sequence_mean_is_the_sum_over_the_number_of_tokens_that_count():
    values, mask = jnp.array([[1.0, 3.0, jnp.nan], [jnp.nan] * 3]), jnp.array([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(masking.sequence_mean(values, mask), [2.0, 0.0])


def test_tokens_left_out_have_no_part_in_sum_or_gradient():
    """The chat format's tokens, 8 and 9, end a response that both policies format alike."""
    labels, mask = jnp.array([[5, 8, 6, 9], [9, 7, 8, 8]]), jnp.array([[True] * 4, [False, True, True, False]])
    content = masking.without_tokens(mask, labels, token_ids=(8, 9))
    np.testing.assert_array_equal(content, [[True, False, True, False], [False, True, False, False]])
    grad = jax.grad(lambda x: masking.sequence_sum(x, content).sum())(jnp.ones((2, 4)))
    np.testing.assert_array_equal(grad, content)
    np.testing.assert_array_equal(masking.without_tokens(mask, labels, token_ids=()), mask)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        masking.masked_sum(jnp.ones((2, 3)), jnp.ones((2, 1), bool))
