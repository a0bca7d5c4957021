"""RMSNorm: values, and the exact cast order of each family."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model.config import NormConfig
from lmx.model.norm import rms_norm

RNG = np.random.default_rng(0)
X, GAIN = RNG.standard_normal((5, 24)) * 3, RNG.standard_normal(24)


@pytest.mark.parametrize("unit_offset", [False, True])
def test_norm_matches_numpy_in_float64(unit_offset):
    y = rms_norm(jnp.float32(X), jnp.float32(GAIN), NormConfig(eps=1e-2, unit_offset=unit_offset))
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-2) * (GAIN + unit_offset)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def _normed32(x):
    x32 = x.astype(jnp.float32)
    return x32 / jnp.sqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-6)


def test_llama_norm_in_bfloat16_casts_before_the_gain():
    x, gain = jnp.asarray(X, jnp.bfloat16), jnp.asarray(GAIN, jnp.bfloat16)
    y = rms_norm(x, gain, NormConfig(eps=1e-6))
    cast_first = _normed32(x).astype(jnp.bfloat16) * gain
    cast_last = (_normed32(x) * gain.astype(jnp.float32)).astype(jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, cast_first)
    assert np.any(np.asarray(cast_first) != np.asarray(cast_last))  # the inputs tell the two orders apart


def test_gemma_norm_in_bfloat16_multiplies_by_one_plus_gain_before_the_cast():
    x, gain = jnp.asarray(X, jnp.bfloat16), jnp.asarray(GAIN, jnp.bfloat16)
    y = rms_norm(x, gain, NormConfig(eps=1e-6, unit_offset=True))
    expected = (_normed32(x) * (1 + gain.astype(jnp.float32))).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, expected)


def test_mean_square_of_many_bfloat16_values_is_summed_in_float32():
    y = rms_norm(jnp.full((1, 4096), 3.0, jnp.bfloat16), jnp.ones(4096), NormConfig(eps=1e-6))
    np.testing.assert_array_equal(np.float32(y), 1.0)  # a bfloat16 sum would stop growing after 256 terms
