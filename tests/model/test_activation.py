"""Activations of the gated feed-forward layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model.activation import gated, gelu_tanh, silu


def test_gelu_is_the_tanh_approximation():
    values = gelu_tanh(jnp.array([-2.0, -1.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(values, [-0.045402306, -0.158808009, 0.345714010, 0.841191991, 1.954597694], atol=1e-6)


@pytest.mark.parametrize("activation", [silu, gelu_tanh])
def test_gating_and_its_gradient_equal_the_plain_product(activation):
    gate, up = jax.random.normal(jax.random.key(0), (2, 3, 5))
    value, slopes = jax.value_and_grad(lambda *a: jnp.sum(gated(*a, activation) ** 2), (0, 1))(gate, up)
    expected, expected_slopes = jax.value_and_grad(lambda g, u: jnp.sum((activation(g) * u) ** 2), (0, 1))(gate, up)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-5, atol=1e-6)
