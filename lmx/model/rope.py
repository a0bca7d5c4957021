"""Rotary position embedding with half-split pairs, and Llama 3.1's frequency scaling."""

import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array
from lmx.model.config import Llama3Scaling, RopeConfig


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
    return plain if config.scaling is None else llama3_scaled(plain, config.scaling)


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


def rotation(positions: Array, head_dim: int, config: RopeConfig) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles.

    Args:
      positions: [B, T] int32.
      head_dim: H.
      config: base and optional scaling.

    Returns:
      (cos, sin), each [B, T, H / 2] float32.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies(head_dim, config).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


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
