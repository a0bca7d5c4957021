"""Preference accuracy of a reward model: how often it scores the chosen response above the rejected one."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.eval.statistics import Estimate, wilson_interval
from lmx.model.decoder import Model
from lmx.objectives import pair
from lmx.objectives.sequence import sequence_rewards


def preference_accuracy(model: Model, params: Params, batches: Iterable[PreferenceBatch], *, confidence: float = 0.95) -> Estimate:
    """Share of pairs that a reward model ranks as labelled; equal rewards count half.

    Args:
      model: a model with a scalar head; its rewards are read as in training (`sequence_rewards`).
      params: its parameters.
      batches: finite; pairs of which a response is empty (filler rows) don't count.
      confidence: of the interval.

    Returns:
      The accuracy with its Wilson interval; `count` is the number of pairs.

    Raises:
      ValueError: no pair, or a reward that is not a number.
    """
    results = [_outcomes(params, batch, apply=model.apply) for batch in batches]
    if not results:
        raise ValueError("the preference loader gave no batch; check the split")
    outcomes, counts = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*results, strict=True))
    outcomes = outcomes[counts]
    if not len(outcomes):
        raise ValueError(f"{len(counts)} preference rows but none has two responses; check the loss masks")
    if np.isnan(outcomes).any():
        raise ValueError(f"{int(np.isnan(outcomes).sum())} of {len(outcomes)} pairs have a reward that is not a number")
    return wilson_interval(float(outcomes.sum(dtype=np.float64)), len(outcomes), confidence=confidence)


@partial(jax.jit, static_argnames="apply")
def _outcomes(params: Params, batch: PreferenceBatch, *, apply: Callable[[Params, LMBatch], Outputs]) -> tuple[Array, Array]:
    """[B] float32 1 (ranked as labelled), 1/2 (tie), 0 or NaN, and [B] bool whether the row is a pair at all."""
    both = pair.interleave(batch)
    chosen, rejected = pair.separate(sequence_rewards(apply(params, both), both))
    outcomes = (jnp.sign(chosen - rejected) + 1) / 2  # the sign of NaN is NaN
    return outcomes, pair.counts(batch)
