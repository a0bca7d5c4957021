"""A source whose next-token distribution is known: a Markov chain, the chain itself as a teacher, and exact scores against it.

Reference: section 5 of the specification: 64 contexts of 64 symbols, rows drawn from a Dirichlet distribution of 0.1.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations import bed
from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import divergence
from lmx.model.decoder import Model
from lmx.train import population

SYMBOLS, CONCENTRATION = 64, 0.1


def tables(seeds: Sequence[int]) -> np.ndarray:
    """[S, V, V] float32, the chance of each next symbol after each; a chain of its own for each seed."""
    rows = [np.random.default_rng([seed, 0]).dirichlet(np.full(SYMBOLS, CONCENTRATION), size=SYMBOLS) for seed in seeds]
    return np.maximum(np.stack(rows), 1e-12).astype(np.float32)


def batches(seeds: Sequence[int], steps: int, *, batch_size: int, length: int, heldout: bool = False) -> LMBatch:
    """Leaves [S, N, B, T]: rows drawn from each seed's chain, each row one document; held-out rows are other draws."""
    drawn = [
        _draw(table, [seed, 1 + heldout], (steps, batch_size), length) for table, seed in zip(tables(seeds), seeds, strict=True)
    ]
    return bed.whole_rows(np.stack(drawn))


def teacher(table: Array, batch: LMBatch) -> Outputs:
    """The chain in the place of a model: its logits are the logarithms of the table's rows."""
    return Outputs(hidden=jax.nn.one_hot(batch.tokens, SYMBOLS), head=jnp.log(table).T)


def scores(model: Model, params: Params, seeds: Sequence[int], heldout: LMBatch) -> dict[str, np.ndarray]:
    """Expectations over the chain's next symbol, free of sampling noise.

    Returns:
      "cross-entropy" (nats) and "accuracy" (top-1), each [A, S].
    """
    # The chain's entropy is added here: with it in the same program as the divergence, XLA (jax 0.10.2, CPU) gave arms 10 to 19 of
    # 20 the values of arms 0 to 9.
    chances, count = tables(seeds), heldout.tokens.shape[1]
    items = {"batch": heldout, "table": np.repeat(chances[:, None], count, axis=1)}  # table [S, N, V, V]
    entropies: np.ndarray = -(chances * np.log(chances)).sum(axis=-1, dtype=np.float64)  # [S, V]
    entropy = np.array([own[tokens].mean() for own, tokens in zip(entropies, heldout.tokens, strict=True)])  # [S]
    kl, hits = (
        population.evaluate(functools.partial(_against, model, score), params, items, own_batches=True).mean(axis=(2, 3, 4))
        for score in (divergence.forward_kl, _accuracy)
    )
    return {"cross-entropy": kl + entropy, "accuracy": hits}


def _against(model: Model, score: Callable[[Array, Array], Array], params: Params, item: Mapping[str, Any]) -> Array:
    """[B, T]"""
    return head.token_loss(teacher(item["table"], item["batch"]), model.apply(params, item["batch"]), score)


def _accuracy(source: Array, logits: Array) -> Array:
    return jnp.sum(jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True), jnp.exp(source), 0.0), axis=-1)


def _draw(table: np.ndarray, entropy: Sequence[int], rows: tuple[int, int], length: int) -> np.ndarray:
    """[*rows, T + 1] int32."""
    generator = np.random.default_rng(entropy)
    limits = np.cumsum(table, axis=-1)
    symbols = np.empty((*rows, length + 1), np.int32)
    symbols[..., 0] = generator.integers(SYMBOLS, size=rows)
    for place in range(1, length + 1):
        draws = generator.random((*rows, 1))
        symbols[..., place] = np.minimum((draws > limits[symbols[..., place - 1]]).sum(axis=-1), SYMBOLS - 1)
    return symbols
