"""RoPE: rotation identities and the goldens of Llama 3.1's frequency scaling."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model import rope
from lmx.model.config import Llama3Scaling, RopeConfig

CONFIG = RopeConfig(theta=10_000.0)
RNG = np.random.default_rng(0)
Q, K = RNG.standard_normal((2, 1, 1, 2, 16))  # [B, T, N, H] of one position


def _rotated(x, position, config=CONFIG):
    positions = jnp.full((1, 1), position, jnp.int32)
    return rope.rotate(jnp.float32(x), *rope.rotation(positions, x.shape[-1], config))


def test_position_zero_is_the_identity():
    np.testing.assert_array_equal(_rotated(Q, 0), np.float32(Q))


def test_rotation_keeps_norms():
    np.testing.assert_allclose(np.linalg.norm(_rotated(Q, 77), axis=-1), np.linalg.norm(Q, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("offset", [1, 50, 1000])
def test_scores_depend_on_the_distance_alone(offset):
    near = jnp.sum(_rotated(Q, 9) * _rotated(K, 4), -1)
    far = jnp.sum(_rotated(Q, 9 + offset) * _rotated(K, 4 + offset), -1)
    np.testing.assert_allclose(near, far, atol=2e-4)  # float32 angles of about 1000 radians


def test_half_split_is_interleaved_under_a_permutation():
    half = Q.shape[-1] // 2
    angles = 5 * rope.frequencies(16, CONFIG)
    pairs = (Q[..., :half] + 1j * Q[..., half:]) * np.exp(1j * angles)  # Meta's complex form on interleaved pairs
    np.testing.assert_allclose(_rotated(Q, 5), np.concatenate([pairs.real, pairs.imag], -1), atol=1e-6)


def test_bfloat16_input_is_rotated_in_float32():
    x = jnp.asarray(Q, jnp.bfloat16)
    y = rope.rotate(x, *rope.rotation(jnp.full((1, 1), 5), 16, CONFIG))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, _rotated(np.float32(x), 5).astype(jnp.bfloat16))


def test_llama3_scaling_reproduces_the_published_frequencies():
    plain = rope.frequencies(128, RopeConfig(theta=500_000.0))
    scaled = rope.frequencies(128, RopeConfig(theta=500_000.0, scaling=Llama3Scaling(factor=8.0, original_length=8_192)))
    ratio = scaled / plain
    np.testing.assert_allclose(ratio[:29], 1.0, rtol=1e-12)  # 29 kept, 6 blended, 29 divided by 8
    np.testing.assert_allclose(ratio[29:35], [0.828168, 0.643743, 0.493507, 0.371122, 0.271425, 0.190211], atol=1e-6)
    np.testing.assert_allclose(ratio[35:], 0.125, rtol=1e-12)
    np.testing.assert_allclose(scaled[[29, 35]], [2.166571e-03, 9.556212e-05], rtol=1e-6)
