"""What is done with a head without ever holding [B, T, V]: logits of a few tokens, losses of many."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Metrics, Outputs, PyTree, Weighted
from lmx.kernels.head import chunked, reference, vocabulary
from lmx.kernels.thin_matmul import MOST_TOKENS, thin_matmul

LOGITS_PER_CHUNK = 2**22  # elements of one [B, c, V] chunk: 16 MiB in float32, near the caches of a CPU
MIN_CHUNK = 64  # tokens of a row; shorter chunks make thin matrix products when the batch is spread over devices


def logits(outputs: Outputs, *, vocab_size: int | None = None) -> Array:
    """Logits of every token, for decoding and other short sequences.

    Args:
      outputs: what the model returned.
      vocab_size: keep the first `vocab_size` rows of the head, without the padding rows behind them; None = all.

    Returns:
      [B, T, V] float32, soft cap applied.
    """
    outputs = dataclasses.replace(outputs, head=outputs.head[:vocab_size])
    if jax.default_backend() == "cpu" and math.prod(outputs.hidden.shape[:2]) <= MOST_TOKENS:
        scores = thin_matmul(outputs.hidden, outputs.head.astype(outputs.hidden.dtype))
        return reference.cap(scores, outputs.soft_cap)
    return reference.logits(outputs)


def token_loss(*outputs_and_fn: Any, chunk_tokens: int | None = None) -> PyTree:
    """A per-token loss of logits that are computed a chunk at a time and never kept, forward or backward.

    `token_loss(student, partial(cross_entropy, labels=batch.labels))`; with a teacher,
    `token_loss(teacher, student, partial(forward_kl, temperature=2.0))`. Outputs under `stop_gradient` cost no gradient.

    Args:
      *outputs_and_fn: one or more `Outputs` of the same [B, T], then `fn`. It is called with one [B, c, V] float32 chunk of
        logits per Outputs and returns one [B, c] array, or a dict or tuple of them. Array keywords of a `functools.partial`
        with leading dims [B, T] are per token and cut into the same chunks; others are passed whole. No gradient flows to them.
      chunk_tokens: c, tokens of a row in one chunk; None = chosen from the shapes.

    Returns:
      What `fn` returns, with [B, T] in place of [B, c]. Tokens whose cotangent is 0 give no gradient, not even as NaN.
    """
    *outputs, fn = outputs_and_fn
    plan, inputs = _prepare(outputs, fn, chunk_tokens)
    return chunked.token_losses(dataclasses.replace(plan, fn=_without_extra(plan.fn)), inputs)


def token_loss_sum(*outputs_and_fn: Any, mask: Array, chunk_tokens: int | None = None) -> tuple[Weighted, Metrics]:
    """The masked sum of a per-token loss, at three matrix products a chunk where a sum over `token_loss` takes four.

    A sum has one scalar cotangent, so its gradient is computed in the forward pass from the same logits as its value, and only
    scaled in the backward pass. `fn` may return `(loss, extra)`, a [B, c] array and a dict of them: a weighted combination of
    losses is then still one sum with one gradient, and its parts are metrics.

    Args:
      *outputs_and_fn: as in `token_loss`.
      mask: [B, T] bool or float32 weights; no gradient flows to it. Tokens where it is 0 never matter, not even as NaN.
      chunk_tokens: as in `token_loss`.

    Returns:
      The sum over the mask with the sum of the mask as its weight, and the same of each array of `extra`, without gradient.
    """
    *outputs, fn = outputs_and_fn
    plan, inputs = _prepare(outputs, fn, chunk_tokens)
    weights = mask.astype(jnp.float32)
    total, extra = chunked.loss_sum(dataclasses.replace(plan, fn=_with_extra(plan.fn)), inputs, weights)
    weight = jnp.sum(weights)
    return Weighted(total, weight), {name: Weighted(chunked.masked_sum(x, weights), weight) for name, x in extra.items()}


def distillation_loss(
    teacher: Outputs,
    student: Outputs,
    *,
    labels: Array,
    alpha: float = 1.0,
    temperature: float = 1.0,
    blocks: int | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """`(1 - alpha) * cross-entropy + alpha * T^2 KL(teacher || student)` with blocks of the vocabulary instead of whole logits.

    For vocabularies of which even a few tokens' logits are too large: at no time are more than (tokens of a chunk) x (rows of a
    block) logits of each model there, and peak memory does not depend on V. The price is six products for the four that
    `token_loss_sum` takes.

    Args:
      teacher: outputs of [B, T] tokens; no gradient flows.
      student: outputs of the same tokens, of any width, with as many rows in its head.
      labels: [B, T] int32.
      alpha: in [0, 1], share of the teacher.
      temperature: T > 0, divides both logits in the divergence.
      blocks: of the vocabulary; None = by its size.
      chunk_tokens: tokens of a row in one chunk; None = chosen from the shapes.

    Returns:
      [B, T] float32 losses, and "kl" (with the factor T^2), "nll" and "accuracy" on the labels, [B, T] float32 without gradient.
      Tokens whose cotangent is 0 give no gradient, not even as NaN.

    Reference: Hinton et al. (2015), arXiv:1503.02531, section 2; Gemma 2, arXiv:2408.00118, section 3. The normalizer is summed
      block by block as in Milakov and Gimelshein (2018), arXiv:1805.02867.
    """
    vocab_size, (batch, length) = student.head.shape[0], student.hidden.shape[:2]
    if teacher.head.shape[0] != vocab_size or teacher.hidden.shape[:2] != (batch, length):
        raise ValueError(
            f"teacher and student must agree in vocabulary and [B, T], but have {teacher.head.shape[0]} and {vocab_size} rows and "
            f"tokens {teacher.hidden.shape[:2]} and {(batch, length)}"
        )
    if blocks is None:
        blocks = vocabulary.num_blocks(vocab_size)
    if not 1 <= blocks <= vocab_size:
        raise ValueError(f"blocks={blocks} must lie in 1..{vocab_size}, the rows of the vocabulary")
    if chunk_tokens is None:
        chunk_tokens = max(MIN_CHUNK, LOGITS_PER_CHUNK // (batch * -(-vocab_size // blocks)))
    plan = vocabulary.Plan(alpha, temperature, (teacher.soft_cap, student.soft_cap), vocab_size, blocks, min(chunk_tokens, length))
    inputs = chunked.Inputs((teacher.hidden, student.hidden), (teacher.head, student.head), {"labels": labels}, {})
    return vocabulary.distillation_losses(plan, inputs)


def distillation_loss_sum(teacher: Outputs, student: Outputs, *, mask: Array, **options: Any) -> tuple[Weighted, Metrics]:
    """The masked sum of `distillation_loss`, with its metrics likewise; the pair that `token_loss_sum` returns.

    Args:
      teacher: as in `distillation_loss`.
      student: likewise.
      mask: [B, T] bool or float32 weights. Tokens where it is 0 never matter, not even as NaN.
      **options: `labels` and the rest of `distillation_loss`.
    """
    losses, parts = distillation_loss(teacher, student, **options)
    weights = mask.astype(jnp.float32)
    weight = jnp.sum(weights)
    metrics = {name: Weighted(chunked.masked_sum(x, weights), weight) for name, x in parts.items()}
    return Weighted(chunked.masked_sum(losses, weights), weight), metrics


def _without_extra(fn: Callable[..., PyTree]) -> Callable[..., tuple[PyTree, PyTree]]:
    return lambda *args, **keywords: (fn(*args, **keywords), {})


def _with_extra(fn: Callable[..., PyTree]) -> Callable[..., tuple[PyTree, PyTree]]:
    def with_extra(*args: Array, **keywords: Array) -> tuple[PyTree, PyTree]:
        result = fn(*args, **keywords)
        return result if isinstance(result, tuple) else (result, {})

    return with_extra


def _prepare(outputs: list[Outputs], fn: Callable[..., PyTree], chunk_tokens: int | None) -> tuple[chunked.Plan, chunked.Inputs]:
    """Separates what is static from arrays, and per-token keywords from whole ones."""
    if not outputs or not callable(fn):
        raise TypeError("a token loss takes one or more Outputs and then a function of their logits")
    shapes = [x.hidden.shape[:2] for x in outputs]
    if len(set(shapes)) > 1:
        raise ValueError(f"the Outputs of one token loss must agree in [B, T], got {shapes}")
    arrays: dict[str, Array] = {}
    if isinstance(fn, functools.partial):
        arrays = {name: value for name, value in fn.keywords.items() if hasattr(value, "shape")}
        fn = functools.partial(fn.func, *fn.args, **{name: value for name, value in fn.keywords.items() if name not in arrays})
    cut = {name: value for name, value in arrays.items() if value.shape[:2] == shapes[0]}
    if chunk_tokens is None:
        batch, widest = shapes[0][0], max(x.head.shape[0] for x in outputs)
        chunk_tokens = max(MIN_CHUNK, LOGITS_PER_CHUNK // (batch * widest))
    inputs = chunked.Inputs(
        hidden=tuple(x.hidden for x in outputs),
        head=tuple(x.head for x in outputs),
        cut=cut,
        whole={name: value for name, value in arrays.items() if name not in cut},
    )
    return chunked.Plan(fn, tuple(x.soft_cap for x in outputs), min(chunk_tokens, shapes[0][1])), inputs
