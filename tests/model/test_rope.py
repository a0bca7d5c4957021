"""RoPE: rotation identities, and the goldens of its scalings."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model import rope
from lmx.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

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


def test_linear_scaling_interpolates_positions():
    scaled = RopeConfig(theta=10_000.0, scaling=LinearScaling(factor=4.0))
    np.testing.assert_allclose(_rotated(Q, 12, scaled), _rotated(Q, 3), atol=1e-6)


def yarn(theta, length, factor=4.0, **options):
    return RopeConfig(theta=theta, scaling=YarnScaling(factor=factor, original_length=length, **options))


def test_yarn_reproduces_the_published_frequencies():
    scaled = rope.frequencies(128, yarn(1e6, 32_768))  # Qwen2: the ramp runs from pair 23 to pair 40
    np.testing.assert_allclose(scaled[[24, 31, 63]], [5.375321e-03, 8.029597e-04, 3.102344e-07], rtol=1e-6)


@pytest.mark.parametrize(
    ("head_dim", "theta", "length", "low", "high"),
    [(128, 1e6, 32_768, 23, 40), (64, 1e6, 32_768, 11, 20), (128, 1e4, 4_096, 20, 46)],
)
def test_yarn_keeps_fast_pairs_divides_slow_ones_and_blends_between(head_dim, theta, length, low, high):
    ratio = rope.frequencies(head_dim, yarn(theta, length)) / rope.frequencies(head_dim, RopeConfig(theta=theta))
    np.testing.assert_allclose(ratio[: low + 1], 1.0, rtol=1e-12)
    np.testing.assert_allclose(ratio[high:], 0.25, rtol=1e-12)
    assert (np.diff(ratio[low : high + 1]) < 0).all()


def test_yarn_of_factor_one_is_plain():
    plain = RopeConfig(theta=1e4)
    np.testing.assert_allclose(rope.frequencies(64, yarn(1e4, 512, factor=1.0)), rope.frequencies(64, plain), rtol=1e-12)
    assert rope.magnitude(yarn(1e4, 512, factor=1.0)) == 1.0


def test_yarn_sharpens_scores_by_the_square_of_its_magnitude():
    config = yarn(1e4, 64)
    assert rope.magnitude(config) == pytest.approx(1.138629436, abs=1e-9)
    score = float(jnp.sum(_rotated(Q, 0, config) * _rotated(K, 0, config)))
    assert score == pytest.approx(1.296476993 * float(np.sum(np.float32(Q) * np.float32(K))), rel=1e-5)
    assert rope.magnitude(yarn(1e4, 64, attention_factor=1.5)) == 1.5


def test_a_yarn_ramp_of_no_width_is_a_step():
    tiny = rope.frequencies(4, yarn(1e4, 64, beta_fast=1.0001, beta_slow=1.0))
    assert np.isfinite(tiny).all()


def test_scalings_that_would_shorten_the_context_are_refused():
    with pytest.raises(ValueError, match=r"factor=0.5 must be at least 1"):
        YarnScaling(factor=0.5, original_length=8)
    with pytest.raises(ValueError, match=r"factor=0.5 must be at least 1"):
        LinearScaling(factor=0.5)
    with pytest.raises(ValueError, match="beta_fast=1.0 must exceed beta_slow=2.0"):
        YarnScaling(factor=2.0, original_length=8, beta_fast=1.0, beta_slow=2.0)


def test_the_critical_base_of_afm_is_the_published_one():
    base = rope.critical_base(500_000.0, trained_length=8_192, target_length=32_768)
    assert base == pytest.approx(6_315_088.77, abs=0.01) and round(base) == 6_315_089
    assert rope.critical_base(23_902.0, trained_length=256, target_length=1_024) == pytest.approx(1_036_788, rel=1e-4)
    assert rope.critical_base(1e4, trained_length=64, target_length=64) == pytest.approx(1e4)
    with pytest.raises(ValueError, match="must both exceed 2 pi"):
        rope.critical_base(1e4, trained_length=6, target_length=64)


@pytest.mark.parametrize(
    ("ratio", "length", "theta"),
    [(13.28, 128, 393), (13.28, 256, 823), (154.5, 1024, 49_489), (312.4, 128, 11_411), (312.4, 256, 23_902), (7.137, 512, 889.1)],
)
def test_matched_bases_are_those_of_the_specification(ratio, length, theta):
    assert rope.theta_matched(ratio, length=length, head_dim=32) == pytest.approx(theta, rel=2e-3)
