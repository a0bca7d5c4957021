"""A source of known entropy: a Markov chain over 64 symbols whose true next-symbol distribution is the teacher."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations import bed
from lmx.core.types import Array, Params, PyTree
from lmx.data.batches import LMBatch, TeacherBatch
from lmx.kernels import head
from lmx.losses import divergence, stored_teacher
from lmx.model.decoder import Model
from lmx.train import population

SYMBOLS, CONCENTRATION = 64, 0.1


def oracle(seeds: Sequence[int]) -> np.ndarray:
    """[S, V, V] float32: log-probabilities of the next symbol after each symbol, one Dirichlet draw a seed."""
    draws = [np.random.default_rng(seed).gamma(CONCENTRATION, size=(SYMBOLS, SYMBOLS)) for seed in seeds]
    rows = np.stack(draws) + 1e-12
    return np.log(rows / rows.sum(axis=-1, keepdims=True)).astype(np.float32)


def text(logprobs: np.ndarray, steps: int, *, batch_size: int, length: int, seed: int) -> LMBatch:
    """Rows of each chain from uniformly drawn first symbols, leaves [S, N, B, T]."""
    generator = np.random.default_rng(seed)
    ends = np.cumsum(np.exp(logprobs.astype(np.float64)), axis=-1)
    chains = np.arange(len(ends))[:, None]
    rows = [generator.integers(SYMBOLS, size=(len(ends), steps * batch_size))]
    for _ in range(length):
        place = ends[chains, rows[-1]]  # [S, N B, V]
        uniforms = generator.random(rows[-1].shape) * place[..., -1]
        rows.append(np.minimum((place <= uniforms[..., None]).sum(axis=-1), SYMBOLS - 1))
    tokens = np.stack(rows, axis=-1).reshape(len(ends), steps, batch_size, length + 1).astype(np.int32)
    return bed.whole_rows(tokens)


def drawn(batches: LMBatch, logprobs: np.ndarray, count: int) -> TeacherBatch:
    """The rows with `count` symbols a token drawn from the oracle, in the form of a teacher's store: leaves [S, N, B, T, ...]."""

    @jax.jit
    def ids(tokens: Array, table: Array, key: Array) -> Array:
        uniforms = jax.random.uniform(key, (*tokens.shape, count, 2))
        return stored_teacher.sample_ids(table[tokens], uniforms=uniforms)

    of_seeds = []
    for number, table in enumerate(logprobs):
        keys = jax.random.split(jax.random.key(number), batches.tokens.shape[1])
        of_seeds.append(np.stack([np.asarray(ids(row, table, key)) for row, key in zip(batches.tokens[number], keys, strict=True)]))
    found = np.stack(of_seeds)
    return TeacherBatch(batches, found, np.ones(found.shape, np.float32), np.zeros(batches.tokens.shape, np.float32))  # type: ignore[arg-type]


def excess(model: Model, params: Params, batches: LMBatch, logprobs: np.ndarray) -> np.ndarray:
    """[A, S] mean KL(source || model) in nats over batches [S, N, B, T]: cross-entropy above the source's own entropy, exactly."""
    count = batches.tokens.shape[1]
    tables = np.broadcast_to(logprobs[:, None], (len(logprobs), count, *logprobs.shape[1:]))
    items = {"text": batches, "table": tables}
    found = population.evaluate(functools.partial(_divergence, model), params, items, own_batches=True)
    return found.astype(np.float64).mean(axis=(2, 3, 4))


def _divergence(model: Model, params: Params, item: PyTree) -> Array:
    logits = head.logits(model.apply(params, item["text"]))
    return divergence.forward_kl(jnp.asarray(item["table"])[item["text"].tokens], logits)
