"""Loss by position: how well a model predicts a token that has so many tokens of its document before it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model


@dataclasses.dataclass(frozen=True)
class PositionLoss:
    """Cross-entropy in buckets of positions.

    Attributes:
      edges: [K + 1] positions; bucket i holds positions edges[i] .. edges[i + 1] - 1.
      nats: [K] float64, sum over the labels of a bucket.
      tokens: [K] int64, labels that count.
    """

    edges: tuple[int, ...]
    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[K] float64, nats a token; NaN where a bucket has none."""
        return np.divide(self.nats, self.tokens, out=np.full(len(self.tokens), np.nan), where=self.tokens > 0)

    @property
    def overall(self) -> float:
        """Nats a token over all buckets."""
        return float(self.nats.sum() / self.tokens.sum())


def loss_by_position(model: Model, params: Params, batches: Iterable[LMBatch], *, edges: Sequence[int]) -> PositionLoss:
    """Mean cross-entropy of the labels that count, by the position of the token before the label in its document.

    Args:
      model: a language model.
      params: its parameters.
      batches: finite.
      edges: ascending positions, at least two; labels outside are left out.

    Raises:
      ValueError: the edges don't ascend, or no label lies between them.
    """
    if len(edges) < 2 or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"edges={list(edges)} must be at least two ascending positions")
    limits = jnp.asarray(edges, jnp.int32)
    sums = [_bucket_sums(params, batch, limits, apply=model.apply) for batch in batches]
    nats = sum((np.asarray(part, np.float64) for part, _ in sums), np.zeros(len(edges) - 1))
    tokens = sum((np.asarray(part, np.int64) for _, part in sums), np.zeros(len(edges) - 1, np.int64))
    if not tokens.sum():
        raise ValueError(
            f"none of the {len(sums)} held-out batches has a label that counts at positions {edges[0]}..{edges[-1] - 1}"
        )
    return PositionLoss(tuple(edges), nats, tokens)


@partial(jax.jit, static_argnames="apply")
def _bucket_sums(
    params: Params, batch: LMBatch, edges: Array, *, apply: Callable[[Params, LMBatch], Outputs]
) -> tuple[Array, Array]:
    """Nats and labels of each bucket, [K] each."""
    nats = head.token_loss(apply(params, batch), partial(likelihood.cross_entropy, labels=batch.labels))  # [B, T]
    buckets = jnp.searchsorted(edges, batch.positions, side="right") - 1  # -1 and K: outside
    inside = batch.loss_mask & (buckets >= 0) & (buckets < len(edges) - 1)
    where = jnp.where(inside, buckets, 0).ravel()
    masked = jnp.where(inside, nats, 0.0).ravel()
    zeros = jnp.zeros(len(edges) - 1, jnp.float32)
    return zeros.at[where].add(masked), zeros.astype(jnp.int32).at[where].add(inside.ravel().astype(jnp.int32))
