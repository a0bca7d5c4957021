"""Log-probabilities of given tokens, computed through the chunked head: no [B, T, V] is ever held."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model
from lmx.sampling import logits as filters
from lmx.sampling import padding

BATCH_TOKENS = 2**14  # tokens of one forward pass: enough for the matrix units, little beside the parameters
Progress = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely given tokens are.

    Attributes:
      logprobs: [n] float32, log-probability (nats) of each token given all before it.
      greedy: [n] bool, whether the token is the most likely one (the lowest id among ties), which greedy decoding would take.
      top_logprobs: for each token the most likely (id, log-probability) at its place in falling order; None when not asked for.
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def total(self) -> float:
        """Log-probability of all tokens together, summed in float64."""
        return float(np.sum(self.logprobs, dtype=np.float64))

    @property
    def all_greedy(self) -> bool:
        """Whether greedy decoding would have written just these tokens."""
        return bool(np.all(self.greedy))


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
    pairs = [(sequence[:1], sequence[1:]) for sequence in sequences]
    return [item.logprobs for item in score_continuations(model, params, pairs, pad_id=pad_id, batch_size=batch_size)]


def score_continuations(
    model: Model,
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int = 0,
    batch_size: int = 32,
    vocab_size: int | None = None,
    top: int = 0,
    progress: Progress | None = None,
) -> list[Score]:
    """How likely each continuation is after its context.

    Rows are padded to power-of-two lengths and gathered by them, so few shapes are compiled. Pairs that differ in their last
    token alone, as the lettered answers to one question do, share a row.

    Args:
      model: a language model.
      params: its parameters.
      pairs: (context, continuation) token ids. A context has at least one token; a continuation may be empty. All but the last
        token of the two together must fit the model's max_length.
      pad_id: fills rows; never seen by the model.
      batch_size: most rows at once; long rows are fewer, about BATCH_TOKENS tokens a call.
      vocab_size: ids below this compete for `greedy` and `top` (the tokenizer's size where the model's table has padding rows);
        None = all. Log-probabilities are those of the whole softmax.
      top: how many of the most likely tokens to report at each place of a continuation; 0 = none.
      progress: called with the number of pairs finished since its last call.

    Returns:
      One Score a pair, in the order given.

    Raises:
      ValueError: an empty context, a pair too long, an id outside the vocabulary, or a reward model.
    """
    check_pairs(model, pairs)
    rows = _shared_rows(pairs)
    scores: dict[int, Score] = {}
    limit = model.config.max_length
    for count, length, width, group in _batches(rows, max_length=limit, batch_size=batch_size):
        tokens, labels, lengths = _arrays(group, rows=count, length=length, width=width, pad_id=pad_id)
        batch = padding.right_padded(jnp.asarray(tokens), jnp.asarray(lengths))
        found = _scores(params, batch, labels, apply=model.apply, vocab_size=vocab_size or model.config.vocab_size, top=top)
        logprobs, greedy, top_values, top_ids = map(np.asarray, found)
        for number, row in enumerate(group):
            span = slice(len(row.inputs) - row.scored, len(row.inputs))
            ranked = _ranked(top_ids[number, span], top_values[number, span]) if top else None
            for place, index in enumerate(row.indices):
                scores[index] = Score(logprobs[number, span, place], greedy[number, span, place], ranked)
        if progress is not None:
            progress(sum(len(row.indices) for row in group))
    return [scores[index] for index in range(len(pairs))]


def check_pairs(model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Raises ValueError, one sentence, when `score_continuations` can't score one of the pairs."""
    config = model.config
    if isinstance(config.head, ScalarHead):
        raise ValueError("scoring text needs a language model, but this one has a scalar head (a reward model)")
    padding.check_ids([context for context, _ in pairs], vocab_size=config.vocab_size, what="context")
    for index, (context, continuation) in enumerate(pairs):
        if len(continuation):
            padding.check_ids([continuation], vocab_size=config.vocab_size, what=f"pair {index}, continuation")
        if len(context) + len(continuation) - 1 > config.max_length:
            raise ValueError(
                f"pair {index} has {len(context)} + {len(continuation)} tokens, more than the model's max_length="
                f"{config.max_length} and one; cut the context from the left"
            )


def rolling_windows(tokens: Sequence[int], *, prefix_id: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Cuts a text of any length into (context, continuation) pairs in which each token is scored exactly once.

    The first window starts at the prefix; each later one reads `max_length` tokens, so its context is as long as can be: a single
    token where the window is full of new ones, more in the last.

    Args:
      tokens: the text, without BOS.
      prefix_id: stands before the text, BOS or EOS.
      max_length: tokens that the model can read, at least 1.

    Returns:
      Pairs for `score_continuations`; the continuations joined are `tokens`.
    """
    whole = [prefix_id, *tokens]
    windows = []
    for start in range(1, len(whole), max_length):
        end = min(start + max_length, len(whole))
        first = max(0, end - 1 - max_length)
        windows.append((whole[first:start], whole[start:end]))
    return windows


# ----- rows and batches


@dataclasses.dataclass(frozen=True)
class _Row:
    """Inputs that one or more pairs share.

    Attributes:
      inputs: context and continuation without the last token.
      scored: how many labels count, at the end.
      lasts: the last token of each pair.
      indices: the pairs' places.
    """

    inputs: tuple[int, ...]
    scored: int
    lasts: list[int]
    indices: list[int]

    def labels(self) -> Iterator[tuple[int, ...]]:
        """The labels of each pair, [scored]."""
        middle = self.inputs[len(self.inputs) - self.scored + 1 :] if self.scored else ()
        for last in self.lasts:
            yield (*middle, last) if self.scored else ()


def _shared_rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Row]:
    rows: dict[tuple[tuple[int, ...], int], _Row] = {}
    for index, (context, continuation) in enumerate(pairs):
        inputs = (*map(int, context), *map(int, continuation[:-1]))
        row = rows.setdefault((inputs, len(continuation)), _Row(inputs, len(continuation), [], []))
        row.lasts.append(int(continuation[-1]) if len(continuation) else 0)
        row.indices.append(index)
    return list(rows.values())


def _batches(rows: list[_Row], *, max_length: int, batch_size: int) -> Iterator[tuple[int, int, int, list[_Row]]]:
    """(rows, length, pairs a row) of each array, each a power of two where the limits allow, and what goes into it."""
    buckets: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        length = padding.power_of_two(len(row.inputs), least=64, most=max_length)
        width = padding.power_of_two(len(row.indices), least=1, most=2**30)
        buckets.setdefault((length, width), []).append(row)
    for (length, width), members in sorted(buckets.items(), reverse=True):  # the longest first: too little memory shows at once
        most = padding.power_of_two(max(BATCH_TOKENS // length, 1), least=1, most=batch_size)
        count = padding.power_of_two(len(members), least=1, most=most)
        # All batches of a bucket have one shape, the last of them too: rows of padding cost less than another compilation.
        for start in range(0, len(members), count):
            yield count, length, width, members[start : start + count]


def _arrays(group: list[_Row], *, rows: int, length: int, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [B, T], labels [B, T, C] and lengths [B], int32."""
    tokens, lengths = padding.pad_rows([row.inputs for row in group], rows=rows, length=length, pad_id=pad_id)
    labels = np.zeros((rows, length, width), np.int32)
    for number, row in enumerate(group):
        for place, wanted in enumerate(row.labels()):
            labels[number, len(row.inputs) - row.scored : len(row.inputs), place] = wanted
    return tokens, labels, lengths


def _ranked(ids: np.ndarray, values: np.ndarray) -> list[list[tuple[int, float]]]:
    return [list(zip(row_ids, row_values, strict=True)) for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)]


@partial(jax.jit, static_argnames=("apply", "vocab_size", "top"))
def _scores(
    params: Params, batch: padding.Tokens, labels: Array, *, apply: Callable[..., Outputs], vocab_size: int, top: int
) -> tuple[Array, Array, Array, Array]:
    """Log-probabilities [B, T, C] float32, greedy [B, T, C] bool, and values and ids of the `top` most likely, [B, T, top]."""
    outputs = apply(params, batch)
    return head.token_loss(outputs, partial(_label_scores, labels=labels, vocab_size=vocab_size, top=top))


def _label_scores(logits: Array, *, labels: Array, vocab_size: int, top: int) -> tuple[Array, Array, Array, Array]:
    """`_scores` of one chunk of logits [B, c, V]."""
    log_normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [B, c, 1]
    logprobs = jnp.take_along_axis(logits, labels, axis=-1) - log_normalizer  # [B, c, C]
    allowed = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, filters.EXCLUDED)
    greedy = labels == jnp.argmax(allowed, axis=-1, keepdims=True)
    values, ids = jax.lax.top_k(allowed, max(top, 1))
    return logprobs, greedy, values - log_normalizer, ids


@partial(jax.jit, static_argnames="apply")
def _token_logprobs(params: Params, batch: LMBatch, *, apply: Callable[[Params, LMBatch], Outputs]) -> Array:
    logprobs = head.token_loss(apply(params, batch), partial(likelihood.token_logprobs, labels=batch.labels))
    return jnp.where(batch.loss_mask, logprobs, 0.0)
