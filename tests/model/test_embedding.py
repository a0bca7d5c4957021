"""The embedding: rows, Gemma's rounded scale, and ids outside the table."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model.embedding import embed

TOKENS = jnp.array([[1, 0]])


@pytest.mark.parametrize(("model_dim", "scale"), [(2304, 48.0), (3584, 59.75), (4608, 68.0)])
def test_scale_is_rounded_to_bfloat16(model_dim, scale):
    x = embed(jnp.ones((2, model_dim)), TOKENS, scale=True, dtype="bfloat16")
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(x), scale)


def test_scale_is_exact_in_float32_and_absent_when_off():
    table = jnp.ones((2, 3584))
    np.testing.assert_allclose(embed(table, TOKENS, scale=True, dtype="float32"), np.sqrt(3584), rtol=1e-7)
    np.testing.assert_array_equal(embed(table, TOKENS, scale=False, dtype="float32"), 1.0)


def test_an_id_outside_the_table_gives_nan_in_its_place_alone():
    x = embed(jnp.ones((2, 4)), jnp.array([[1, 2]]), scale=False, dtype="float32")
    assert np.isfinite(x[0, 0]).all()
    assert np.isnan(x[0, 1]).all()
