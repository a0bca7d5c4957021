"""Log-probabilities of tokens under logits."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.losses.precision import at_least_float32


def token_logprobs(logits: Array, labels: Array) -> Array:
    """Log-probability (nats) of each label.

    Args:
      logits: [..., V].
      labels: [...] int32 in [0, V).

    Returns:
      [...] float32, at most 0.
    """
    label_logits, log_normalizer = _label_logits(logits, labels)
    return label_logits - log_normalizer


def cross_entropy(logits: Array, *, labels: Array, z_loss: float = 0.0) -> Array:
    """Negative log-likelihood of the labels, plus `z_loss` times the squared log-normalizer.

    The z-loss keeps log Z near 0, so that logits don't drift where the softmax is blind to a shift.

    Args:
      logits: [..., V].
      labels: [...] int32 in [0, V).
      z_loss: coefficient >= 0 of (log Z)^2; 0 = plain cross-entropy.

    Returns:
      [...] float32, nats.

    Reference: Chowdhery et al. (2022), arXiv:2204.02311, section 5 (auxiliary loss 1e-4 * log^2 Z).
    """
    label_logits, log_normalizer = _label_logits(logits, labels)
    return log_normalizer - label_logits + z_loss * jnp.square(log_normalizer)


def top1_hits(logits: Array, labels: Array) -> Array:
    """1 where no token has a greater logit than the label, else 0: [..., V], [...] -> [...] float32; a tie is a hit."""
    label_logits, _ = _label_logits(logits, labels)
    return (label_logits >= jnp.max(logits, axis=-1)).astype(jnp.float32)


def entropy(logits: Array) -> Array:
    """Entropy (nats) of softmax(logits): [..., V] -> [...] float32, in [0, log V]."""
    chex.assert_rank(logits, set(range(1, 8)))
    logprobs = jax.nn.log_softmax(at_least_float32(logits))
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def _label_logits(logits: Array, labels: Array) -> tuple[Array, Array]:
    chex.assert_rank(labels, logits.ndim - 1)
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    chex.assert_type(labels, int)
    logits = at_least_float32(logits)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]  # [...]
    return label_logits, jax.nn.logsumexp(logits, axis=-1)
