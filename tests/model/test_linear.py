"""The contraction with a written-out gradient against jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model.linear import contract

SHAPES = [((6,), (3, 4)), ((3, 4), (6,)), ((8,), (2,)), ((2, 3), (2, 5))]  # wide outputs, wide inputs


def values_and_grads(run, x, kernel):
    def loss(x, kernel):
        y = run(x, kernel)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, grads


def inputs(in_shape, out_shape, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (2, 5, *in_shape), dtype), jax.random.normal(keys[1], (*in_shape, *out_shape))


@pytest.mark.parametrize(("in_shape", "out_shape"), SHAPES)
def test_contract_equals_tensordot_in_value_and_gradient(in_shape, out_shape):
    x, kernel = inputs(in_shape, out_shape)
    actual = values_and_grads(lambda x, w: contract(x, w, len(in_shape)), x, kernel)
    expected = values_and_grads(lambda x, w: jnp.tensordot(x, w, axes=len(in_shape)), x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_float32_kernels_keep_float32_gradients_under_bfloat16_activations():
    x, kernel = inputs((6,), (9,), "bfloat16")
    y, (x_grad, kernel_grad) = values_and_grads(lambda x, w: contract(x, w, 1), x, kernel)
    assert (y.dtype, x_grad.dtype, kernel_grad.dtype) == ("bfloat16", "bfloat16", "float32")
    rounded = kernel_grad.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.any(np.asarray(kernel_grad != rounded))  # not a bfloat16 product that was cast afterwards
