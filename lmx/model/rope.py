"""Rotary position embedding with half-split pairs, and its scalings for longer contexts: linear, Llama 3.1, YaRN."""

import math

import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array
from lmx.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def frequencies(head_dim: int, config: RopeConfig) -> np.ndarray:
    """Angular frequency of each pair, radians a position.

    Args:
      head_dim: H, even.
      config: base and optional scaling.

    Returns:
      [H / 2] float64, falling from 1.

    Reference: Su et al. (2021), arXiv:2104.09864, Eq. 15.
    """
    plain = config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    match config.scaling:
        case LinearScaling(factor=factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return llama3_scaled(plain, scaling)
        case YarnScaling() as scaling:
            return yarn_scaled(plain, scaling, config.theta)
    return plain


def llama3_scaled(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Frequencies with long wavelengths slowed down by `factor`, short ones kept, and a linear blend between.

    With wavelength lam = 2 pi / w and trained length L0: lam < L0 / high keeps w, lam > L0 / low gives w / factor, else
    s = (L0 / lam - low) / (high - low) and w' = (1 - s) w / factor + s w.

    Args:
      plain: [H / 2] frequencies.
      scaling: factors and L0.

    Returns:
      [H / 2] float64.

    Reference: Grattafiori et al. (2024), arXiv:2407.21783; the formula is that of meta-llama/llama-models, models/llama3/model.py.
    """
    turns = scaling.original_length * plain / (2 * np.pi)  # L0 / lam
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * plain / scaling.factor + blend * plain


def yarn_scaled(plain: np.ndarray, scaling: YarnScaling, theta: float) -> np.ndarray:
    """Frequencies of pairs that turn slowly within the trained length divided by `factor`, of fast ones kept, a ramp between.

    The pair that turns r times within L0 is dim(r) = H ln(L0 / (2 pi r)) / (2 ln theta); the ramp over the pairs rises from 0 at
    dim(beta_fast) to 1 at dim(beta_slow), and w' = ramp w / s + (1 - ramp) w.

    Args:
      plain: [H / 2] frequencies.
      scaling: s, L0 and the ends of the ramp.
      theta: base of the frequencies.

    Returns:
      [H / 2] float64.

    Reference: Peng et al. (2023), arXiv:2309.00071, Eq. 21-23; rounding and bounds of the ramp as in transformers.
    """
    head_dim = 2 * len(plain)
    low, high = (
        head_dim * math.log(scaling.original_length / (2 * math.pi * turns)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low), 0.0, 1.0)
    return ramp * plain / scaling.factor + (1 - ramp) * plain


def magnitude(config: RopeConfig) -> float:
    """a, the multiplier of cosine and sine: 1 but under YaRN, where scores carry a^2, a temperature that sharpens them."""
    scaling = config.scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    return scaling.attention_factor if scaling.attention_factor is not None else 0.1 * math.log(scaling.factor) + 1.0


def rotation(positions: Array, head_dim: int, config: RopeConfig) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles.

    Args:
      positions: [B, T] int32.
      head_dim: H.
      config: base and optional scaling.

    Returns:
      (cos, sin), each [B, T, H / 2] float32, times the scaling's magnitude.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies(head_dim, config).astype(np.float32)
    scale = magnitude(config)
    if scale == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return jnp.cos(angles) * np.float32(scale), jnp.sin(angles) * np.float32(scale)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Each pair (i, i + H / 2) of every head turned by its angle, in float32.

    Args:
      x: [B, T, N, H].
      cos: [B, T, H / 2] float32.
      sin: [B, T, H / 2] float32.

    Returns:
      [B, T, N, H] in x's dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [B, T, N, H / 2]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def critical_base(theta: float, *, trained_length: float, target_length: float) -> float:
    """The RoPE base at which as large a share of the pairs turns fully within the target length as did within the trained one.

    The share is ln(T / 2 pi) / ln(base), so base' = base ^ (ln(T' / 2 pi) / ln(T / 2 pi)): AFM's 500,000 at 8,192 tokens becomes
    6,315,089 at 32,768.

    Args:
      theta: base that the model was trained with.
      trained_length: T, tokens of the rows it was trained on, > 2 pi.
      target_length: T', tokens.

    Reference: Liu et al. (2023), arXiv:2310.05209, Theorem 1 and section 4.
    """
    full_turn = 2 * math.pi
    if trained_length <= full_turn or target_length <= full_turn:
        raise ValueError(f"trained_length={trained_length} and target_length={target_length} must both exceed 2 pi")
    return theta ** (math.log(target_length / full_turn) / math.log(trained_length / full_turn))


def theta_matched(ratio: float, *, length: float, head_dim: int) -> float:
    """The RoPE base whose longest wavelength, 2 pi base ^ ((H - 2) / H), is `ratio` times a length.

    Args:
      ratio: longest wavelength over trained length, kept from a full-size model to a small one.
      length: tokens of the small model, > 2 pi / ratio.
      head_dim: H of the small model, > 2: heads of two dimensions have one wavelength whatever the base.
    """
    return (ratio * length / (2 * math.pi)) ** (head_dim / (head_dim - 2))
