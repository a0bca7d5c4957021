"""Losses and measures of reward models that compare or grade responses."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses import likelihood, masking
from lmx.losses.precision import at_least_float32

LEVEL_PROBABILITIES = (0.65, 0.75, 0.85, 0.95)  # negligibly, slightly, plainly, significantly better


def bradley_terry_loss(*, chosen: Array, rejected: Array, margin: Array | None = None) -> Array:
    """Negative log-likelihood that the chosen response wins: `-log sigmoid(chosen - rejected - margin)`.

    Args:
      chosen: [B] float32, rewards of the preferred responses.
      rejected: [B] float32, rewards of the others.
      margin: [B] float32, how much better the preferred one must be; None = 0.

    Returns:
      [B] float32, one loss per pair.

    Reference: Bradley and Terry (1952); margin: Touvron et al. (2023), arXiv:2307.09288, Eq. 2.
    """
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_rank(chosen, 1)
    difference = at_least_float32(chosen) - at_least_float32(rejected)
    if margin is not None:
        chex.assert_equal_shape([chosen, margin])
        difference = difference - margin
    return -jax.nn.log_sigmoid(difference)


def soft_label_loss(*, chosen: Array, rejected: Array, probability: Array) -> Array:
    """Cross-entropy between the probability that the chosen response is better and that which the rewards give.

    Unlike with a hard label, the optimum is finite: chosen - rejected = logit(probability). With probability 1 it is
    `bradley_terry_loss`.

    Args:
      chosen: [B] float32, rewards of the preferred responses.
      rejected: [B] float32, rewards of the others.
      probability: [B] float32 in [0, 1], as from `level_probabilities`; no gradient flows.

    Returns:
      [B] float32, one loss per pair; log 2 at equal rewards.

    Reference: Gunter et al. (2024), arXiv:2407.21075, section on the reward model (L_ranking).
    """
    chex.assert_equal_shape([chosen, rejected, probability])
    chex.assert_rank(chosen, 1)
    difference = at_least_float32(chosen) - at_least_float32(rejected)
    probability = jax.lax.stop_gradient(at_least_float32(probability))
    return -probability * jax.nn.log_sigmoid(difference) - (1 - probability) * jax.nn.log_sigmoid(-difference)


def level_probabilities(levels: Array) -> Array:
    """Soft labels of preference levels: 0 negligibly, 1 slightly, 2 plainly, 3 significantly better -> .65, .75, .85, .95.

    Args:
      levels: [...] int32 in 0..3; a level outside of it gives NaN.

    Returns:
      [...] float32.

    Reference: Gunter et al. (2024), arXiv:2407.21075, section on the reward model.
    """
    chex.assert_type(levels, int)
    known = (levels >= 0) & (levels < len(LEVEL_PROBABILITIES))
    return jnp.where(known, jnp.array(LEVEL_PROBABILITIES, jnp.float32)[jnp.where(known, levels, 0)], jnp.nan)


def grading_loss(logits: Array, *, grades: Array, graded: Array | None = None) -> Array:
    """Cross-entropy of one response's single-sided grades, summed over its aspects.

    AFM's regulariser of a pair is the sum over its two responses, added to `soft_label_loss` with a small coefficient; the aspects
    are instruction following, verbosity, truthfulness and harmlessness, with 3 grades each.

    Args:
      logits: [B, A, C], of C grades in each of A aspects.
      grades: [B, A] int32 in [0, C).
      graded: [B, A] bool, False where nobody gave a grade (`grades` is not read there); None = all are given.

    Returns:
      [B] float32, nats; 0 where nothing is graded.

    Reference: Gunter et al. (2024), arXiv:2407.21075, section on the reward model (L_regu).
    """
    chex.assert_rank([logits, grades], [3, 2])
    chex.assert_equal_shape_prefix([logits, grades], 2)
    graded = jnp.ones(grades.shape, bool) if graded is None else graded
    chex.assert_equal_shape([grades, graded])
    logits, grades = jnp.where(graded[..., None], logits, 0.0), jnp.where(graded, grades, 0)  # NaN must not reach the gradient
    losses = likelihood.cross_entropy(logits, labels=grades)
    return masking.masked_sum(losses, graded, axis=1)


def ranking_loss(rewards: Array, *, ranked: Array) -> Array:
    """Mean of `bradley_terry_loss` over all pairs of a ranked list of responses, such as edited > chosen > rejected.

    Args:
      rewards: [B, R] float32, best response first.
      ranked: [B, R] bool, False where a list is shorter than R.

    Returns:
      [B] float32, one loss per list; 0 where fewer than two responses are ranked.

    Reference: Ouyang et al. (2022), arXiv:2203.02155, Eq. 1; three responses: Dubey et al. (2024), arXiv:2407.21783, section 4.1.2.
    """
    chex.assert_equal_shape([rewards, ranked])
    chex.assert_rank(rewards, 2)
    better, worse = jnp.triu_indices(rewards.shape[1], k=1)
    both = ranked[:, better] & ranked[:, worse]  # [B, R (R - 1) / 2]
    rewards = jnp.where(ranked, at_least_float32(rewards), 0.0)
    return masking.masked_mean(-jax.nn.log_sigmoid(rewards[:, better] - rewards[:, worse]), both, axis=1)


def pairwise_accuracy(*, chosen: Array, rejected: Array) -> Array:
    """1 where the chosen response has the higher score, 1/2 on a tie, else 0: [B], [B] -> [B] float32."""
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_rank(chosen, 1)
    return (jnp.sign(at_least_float32(chosen) - at_least_float32(rejected)) + 1) / 2
