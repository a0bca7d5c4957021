"""Grouped matrix product against its dense specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.kernels.grouped_matmul import api, reference

X = jax.random.normal(jax.random.key(0), (9, 4))
W = jax.random.normal(jax.random.key(1), (3, 4, 5))


@pytest.mark.parametrize("group_sizes", [[2, 3, 4], [0, 9, 0], [5, 0, 4], [0, 0, 9]])
def test_kernel_matches_reference_forward_and_vjp(group_sizes):
    sizes = jnp.array(group_sizes, jnp.int32)
    value, pull = jax.vjp(lambda x, w: api.grouped_matmul(x, w, sizes), X, W)
    expected, expected_pull = jax.vjp(lambda x, w: reference.grouped_matmul(x, w, sizes), X, W)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for grad, wanted in zip(pull(value), expected_pull(value), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-4)


def test_each_row_meets_the_matrix_of_its_group():
    out = api.grouped_matmul(X, W, jnp.array([4, 3, 2], jnp.int32))
    np.testing.assert_allclose(out[:4], X[:4] @ W[0], atol=1e-5)
    np.testing.assert_allclose(out[4:7], X[4:7] @ W[1], atol=1e-5)
    np.testing.assert_allclose(out[7:], X[7:] @ W[2], atol=1e-5)


def test_output_keeps_the_input_dtype():
    out = api.grouped_matmul(X.astype(jnp.bfloat16), W.astype(jnp.bfloat16), jnp.array([4, 3, 2], jnp.int32))
    assert out.dtype == jnp.bfloat16
