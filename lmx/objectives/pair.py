"""Pairs of responses as one batch, so that a model runs once over both."""

import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.data.batches import LMBatch, PreferenceBatch


def interleave(batch: PreferenceBatch) -> LMBatch:
    """[2B, T]: row 2i is the chosen response of pair i, row 2i + 1 the rejected one; pairs stay on the device that holds them."""
    return jax.tree.map(lambda c, r: jnp.stack([c, r], axis=1).reshape(-1, *c.shape[1:]), batch.chosen, batch.rejected)


def separate(values: Array) -> tuple[Array, Array]:
    """The inverse on one value a row: [2B] -> chosen [B], rejected [B]."""
    pairs = values.reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def counts(batch: PreferenceBatch) -> Array:
    """[B] bool, True where both responses have tokens; the last batch of a data set may hold empty rows."""
    return jnp.any(batch.chosen.loss_mask, axis=1) & jnp.any(batch.rejected.loss_mask, axis=1)
