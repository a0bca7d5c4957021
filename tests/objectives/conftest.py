"""A model whose hidden states are the rows of a table: positions are independent, so what each loss reads is plain to see."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Outputs, Weighted
from lmx.data.batches import LMBatch, PreferenceBatch

VOCAB, DIM = 7, 4


@pytest.fixture
def apply() -> Callable:
    return lambda params, batch: Outputs(params["table"][batch.tokens], params["head"])


@pytest.fixture
def make_params() -> Callable:
    """`make_params(seed, vocab=..., dim=..., rows=...)`; `rows` is the head's, 1 for a reward model."""

    def make(seed: int = 0, *, vocab: int = VOCAB, dim: int = DIM, rows: int | None = None) -> dict:
        table, head = jax.random.split(jax.random.key(seed))
        return {"table": jax.random.normal(table, (vocab, dim)), "head": jax.random.normal(head, (rows or vocab, dim))}

    return make


@pytest.fixture
def make_batch() -> Callable:
    """`make_batch(seed, prompts=..., lengths=..., width=...)`: rows of a prompt and a response, the loss on the response alone."""

    def make(seed: int = 0, *, prompts=(2, 1, 3), lengths=(6, 3, 8), width: int = 8) -> LMBatch:
        tokens = np.random.default_rng(seed).integers(1, VOCAB, (len(lengths), width + 1)).astype(np.int32)
        place = np.arange(width)
        lengths, prompts = np.array(lengths)[:, None], np.array(prompts)[:, None]
        valid = place < lengths
        return LMBatch(
            tokens=jnp.asarray(np.where(valid, tokens[:, :-1], 0)),
            labels=jnp.asarray(np.where(place < lengths - 1, tokens[:, 1:], 0)),
            loss_mask=jnp.asarray((place >= prompts - 1) & (place < lengths - 1)),
            segment_ids=jnp.asarray(valid.astype(np.int32)),
            positions=jnp.asarray(np.where(valid, place, 0).astype(np.int32)),
        )

    return make


@pytest.fixture
def make_pairs(make_batch: Callable) -> Callable:
    return lambda width=8: PreferenceBatch(make_batch(1, width=width), make_batch(2, lengths=(5, 7, 4), width=width))


@pytest.fixture
def scramble() -> Callable:
    """The same batch with other tokens and labels wherever the loss mask is False."""

    def change(batch: LMBatch) -> LMBatch:
        tokens, labels = (jnp.where(batch.loss_mask, x, (x + 3) % VOCAB) for x in (batch.tokens, batch.labels))
        return dataclasses.replace(batch, tokens=tokens, labels=labels)

    return change


@pytest.fixture
def loss_of() -> Callable:
    """`loss_of(objective)(params, frozen, batch)`: the loss as the train step makes it, with the metrics' means."""

    def loss_of(objective: Callable) -> Callable:
        def loss(params, frozen, batch):
            terms, metrics = objective(params, frozen, batch, jax.random.key(0))
            is_weighted = lambda x: isinstance(x, Weighted)  # noqa: E731
            means = jax.tree.map(lambda x: x.mean(), metrics, is_leaf=is_weighted)
            return sum(coefficient * term.mean() for coefficient, term in terms.values()), means

        return loss

    return loss_of
