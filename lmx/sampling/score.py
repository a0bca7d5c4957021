"""Log-probabilities of given tokens, computed through the chunked head: no [B, T, V] is ever held."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model
from lmx.sampling import padding


def token_logprobs(model: Model, params: Params, batch: LMBatch) -> Array:
    """Log-probability of every label.

    Args:
      model: a language model.
      params: its parameters.
      batch: LMBatch of [B, T] arrays.

    Returns:
      [B, T] float32, nats; 0 where `loss_mask` is False.
    """
    return _token_logprobs(params, batch, apply=model.apply)


def sequence_logprobs(model: Model, params: Params, batch: LMBatch) -> Array:
    """Sum of the log-probabilities of each row's labels where `loss_mask` is True: [B] float32, nats."""
    return jnp.sum(token_logprobs(model, params, batch), axis=-1)


def score(
    model: Model, params: Params, sequences: Sequence[Sequence[int]], *, pad_id: int = 0, batch_size: int = 32
) -> list[np.ndarray]:
    """Log-probability of each token of each sequence given those before it.

    Args:
      model: a language model.
      params: its parameters.
      sequences: token ids, at least one each. The first token is only context: begin with BOS to score a text from its start.
      pad_id: fills rows; never seen by the model.
      batch_size: most rows at once.

    Returns:
      One array a sequence, [len(sequence) - 1] float32, nats; entry i is the score of token i + 1.

    Raises:
      ValueError: an empty sequence, one longer than the model's max_length, or an id outside the vocabulary.
    """
    limit = model.config.max_length
    padding.check_ids(sequences, vocab_size=model.config.vocab_size, what="sequence")
    for index, sequence in enumerate(sequences):
        if len(sequence) > limit:
            raise ValueError(f"sequence {index} has {len(sequence)} tokens, more than the model's max_length={limit}; cut it")
    scores: dict[int, np.ndarray] = {}
    for length, group in padding.groups_by_length([len(s) for s in sequences], max_length=limit, batch_size=batch_size):
        rows = padding.power_of_two(len(group), least=1, most=batch_size)
        tokens, lengths = padding.pad_rows([sequences[i] for i in group], rows=rows, length=length, pad_id=pad_id)
        logprobs = np.asarray(token_logprobs(model, params, _next_token_batch(tokens, lengths)))
        for row, index in enumerate(group):
            scores[index] = logprobs[row, : len(sequences[index]) - 1]
    return [scores[index] for index in range(len(sequences))]


def _next_token_batch(tokens: np.ndarray, lengths: np.ndarray) -> LMBatch:
    """LMBatch of one document a row: every token after the first is a label."""
    labels = np.zeros_like(tokens)
    labels[:, :-1] = tokens[:, 1:]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return LMBatch(
        tokens=tokens,  # type: ignore[arg-type]
        labels=labels,  # type: ignore[arg-type]
        loss_mask=positions < lengths[:, None] - 1,  # type: ignore[arg-type]
        segment_ids=(positions < lengths[:, None]).astype(np.int32),  # type: ignore[arg-type]
        positions=positions,  # type: ignore[arg-type]
    )


@partial(jax.jit, static_argnames="apply")
def _token_logprobs(params: Params, batch: LMBatch, *, apply: Callable[[Params, LMBatch], Outputs]) -> Array:
    logprobs = head.token_loss(apply(params, batch), partial(likelihood.token_logprobs, labels=batch.labels))
    return jnp.where(batch.loss_mask, logprobs, 0.0)
