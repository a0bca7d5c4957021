"""Thin products against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.kernels.thin_matmul import thin_matmul


@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 24), (2, 5, 24)])
def test_a_thin_product_equals_the_plain_one(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, rows = random.normal(size=shape).astype(np.float32), random.normal(size=(40, 24)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(thin_matmul)(x, rows), x.astype(np.float64) @ rows.T.astype(np.float64), rtol=1e-4, atol=1e-5
    )


def test_bfloat16_operands_are_added_up_in_float32() -> None:
    x, rows = jnp.full((1, 4096), 1 / 256, jnp.bfloat16), jnp.ones((2, 4096), jnp.bfloat16)
    product = thin_matmul(x, rows)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, 16.0, rtol=1e-6)
