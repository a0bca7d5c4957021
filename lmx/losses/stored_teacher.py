"""A teacher's distribution cut down to what can be stored of each token, and the losses of a student against it."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.divergence import relative_entropy
from lmx.losses.precision import at_least_float32

_SAMPLING_BLOCK = 512  # tokens of the vocabulary among which the second draw chooses


def top_logprobs(logits: Array, *, k: int, temperature: float = 1.0) -> dict[str, Array]:
    """The k most probable tokens, their log-probabilities, and what is left for all others together.

    Args:
      logits: [..., V].
      k: in 1..V.
      temperature: T > 0, divides the logits.

    Returns:
      "ids" [..., k] int32, most probable first, the lowest id winning a tie; "logprobs" [..., k] float32; "tail" [...] float32,
      log of the other tokens' probability, -inf when k = V.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k={k} must lie in 1..{logits.shape[-1]}, the size of the vocabulary")
    logits = at_least_float32(logits) / temperature
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    kept, ids = jax.lax.top_k(logits, k)
    return {
        "ids": ids.astype(jnp.int32),
        "logprobs": kept - normalizer[..., None],
        "tail": _rest_logsumexp(logits, ids) - normalizer,
    }


def sample_ids(logits: Array, *, uniforms: Array, temperature: float = 1.0) -> Array:
    """Tokens drawn from softmax(logits / T) with replacement.

    By inverting the distribution function, first over blocks of the vocabulary and then inside the block that was hit, so that an
    improbable token is no worse off than float32 makes it: each probability is met to about 1e-6 of itself or 1e-7 of its block.

    Args:
      logits: [..., V].
      uniforms: [..., K, 2], independent in [0, 1): two for each of the K draws.
      temperature: T > 0, divides the logits.

    Returns:
      [..., K] int32.
    """
    logits = at_least_float32(logits) / temperature
    missing = -logits.shape[-1] % _SAMPLING_BLOCK
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0)] * (logits.ndim - 1) + [(0, missing)])
    blocks = weights.reshape(*logits.shape[:-1], -1, _SAMPLING_BLOCK)  # [..., n, b]
    block = _invert(jnp.sum(blocks, axis=-1)[..., None, :], uniforms[..., 0])  # [..., K]
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2)  # [..., K, b]
    return block * _SAMPLING_BLOCK + _invert(inside, uniforms[..., 1])


def tail_kl(student_logits: Array, *, ids: Array, logprobs: Array, tail: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) over the stored tokens and one bucket for all others, times temperature squared.

    A lower bound on the whole KL (data processing), and the whole KL itself when k = V.

    Args:
      student_logits: [..., V].
      ids: [..., k] int32, distinct.
      logprobs: [..., k], the teacher's; no gradient flows. Normalised here together with the tail.
      tail: [...], log of the teacher's probability outside of `ids`.
      temperature: T > 0, that of the stored log-probabilities; divides the student's logits too.

    Returns:
      [...] float32, nats.
    """
    _check(student_logits, ids, logprobs)
    chex.assert_equal_shape([tail, ids[..., 0]])
    student = at_least_float32(student_logits) / temperature
    whole = jax.lax.stop_gradient(jnp.concatenate([logprobs, tail[..., None]], axis=-1))
    whole = jax.nn.log_softmax(at_least_float32(whole))
    normalizer = jax.nn.logsumexp(student, axis=-1)
    of_student = jnp.take_along_axis(student, ids, axis=-1) - normalizer[..., None]
    divergence = relative_entropy(whole[..., :-1], of_student)
    if ids.shape[-1] < student.shape[-1]:
        divergence += relative_entropy(whole[..., -1:], (_rest_logsumexp(student, ids) - normalizer)[..., None])
    return temperature**2 * divergence


def renormalised_kl(student_logits: Array, *, ids: Array, logprobs: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) with the teacher's stored probabilities scaled up to sum to 1, times temperature squared.

    Biased: the student is told that no other token ever comes. `tail_kl` doesn't say so.

    Args:
      student_logits: [..., V].
      ids: [..., k] int32, distinct.
      logprobs: [..., k], the teacher's; no gradient flows.
      temperature: T > 0, that of the stored log-probabilities.

    Returns:
      [...] float32, nats.

    Reference: Gemma 3 (2025), arXiv:2503.19786, section 3 (256 tokens, the others' target 0, renormalised).
    """
    _check(student_logits, ids, logprobs)
    student = at_least_float32(student_logits) / temperature
    teacher = jax.nn.log_softmax(at_least_float32(jax.lax.stop_gradient(logprobs)))
    of_student = jnp.take_along_axis(student, ids, axis=-1) - jax.nn.logsumexp(student, axis=-1, keepdims=True)
    return temperature**2 * relative_entropy(teacher, of_student)


def sampled_cross_entropy(student_logits: Array, *, ids: Array, counts: Array, temperature: float = 1.0) -> Array:
    """`-1/K sum_k log P_S(x_k)` over tokens x_k drawn from the teacher, times temperature squared.

    An unbiased estimate of the cross-entropy `-sum P_T log P_S`, whose gradient is that of KL(teacher || student); its variance is
    that of log P_S under the teacher over K. With K = 1 and T = 1 it is next-token training on the teacher's tokens.

    Args:
      student_logits: [..., V].
      ids: [..., k] int32; slots of count 0 are not read.
      counts: [..., k], how often each was drawn; K is their sum.
      temperature: T > 0, at which they were drawn.

    Returns:
      [...] float32, nats.
    """
    _check(student_logits, ids, counts)
    student = at_least_float32(student_logits) / temperature
    of_student = jnp.take_along_axis(student, ids, axis=-1) - jax.nn.logsumexp(student, axis=-1, keepdims=True)
    counts = at_least_float32(jax.lax.stop_gradient(counts))
    shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)
    return -(temperature**2) * jnp.sum(shares * of_student, axis=-1)


def _check(student_logits: Array, ids: Array, values: Array) -> None:
    chex.assert_equal_shape([ids, values])
    chex.assert_equal_shape_prefix([student_logits, ids], ids.ndim - 1)
    chex.assert_type(ids, int)


def _rest_logsumexp(logits: Array, ids: Array) -> Array:
    """[...], log-sum-exp of the logits [..., V] without those at `ids`, [..., k]; -inf when none is left."""
    if ids.shape[-1] == logits.shape[-1]:
        return jnp.full(logits.shape[:-1], -jnp.inf, logits.dtype)
    return jax.nn.logsumexp(jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False), axis=-1)


def _invert(weights: Array, uniforms: Array) -> Array:
    """The index that each uniform number [..., K] falls on when the line is divided in proportion to weights, [..., K or 1, n]."""
    ends = jnp.cumsum(weights, axis=-1)
    last = ends[..., -1]
    target = jnp.minimum(uniforms * last, jnp.nextafter(last, jnp.zeros_like(last)))
    return jnp.sum(ends <= target[..., None], axis=-1).astype(jnp.int32)
