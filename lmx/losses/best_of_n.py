"""The best and the worst of n responses to a prompt: pairs for preference optimization, and what picking the best costs in KL."""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32


class Picked(NamedTuple):
    """Of each prompt's responses, which to prefer to which.

    Attributes:
      best: [B] int32 index of the highest score, the lowest index winning a tie.
      worst: [B] int32 index of the lowest score, likewise.
      gap: [B] float32, best score less worst, at least 0. Drop pairs where it is 0 (all equal, or one response only: best and
        worst are then the same) or below what a reward model can tell apart.
    """

    best: Array
    worst: Array
    gap: Array


def best_and_worst(scores: Array, *, mask: Array | None = None) -> Picked:
    """The extremes of each group of scores.

    Args:
      scores: [B, G] float32. NaN is not a score: leave such a response out by the mask, or its group is picked at random.
      mask: [B, G] bool, False leaves a response out; None = all count. A group with none left has gap 0.

    Returns:
      Picked.
    """
    chex.assert_rank(scores, 2)
    scores = at_least_float32(scores)
    mask = jnp.ones(scores.shape, bool) if mask is None else mask
    chex.assert_equal_shape([scores, mask])
    highest, lowest = jnp.where(mask, scores, -jnp.inf), jnp.where(mask, scores, jnp.inf)
    best, worst = jnp.argmax(highest, axis=1).astype(jnp.int32), jnp.argmin(lowest, axis=1).astype(jnp.int32)
    gap = jnp.where(jnp.any(mask, axis=1), jnp.max(highest, axis=1) - jnp.min(lowest, axis=1), 0.0)
    return Picked(best=best, worst=worst, gap=gap)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, KL (nats) of the best of n samples from the policy that drew them; an upper bound where scores tie.

    Args:
      n: >= 1 samples.

    Returns:
      nats; 0 at n = 1.

    Raises:
      ValueError: n < 1.

    Reference: Stiennon et al. (2020), arXiv:2009.01325, appendix G.3; as a bound: Beirami et al. (2024), arXiv:2401.01879.
    """
    if n < 1:
        raise ValueError(f"n={n} samples, but the best of n needs at least 1")
    return math.log(n) - (n - 1) / n
