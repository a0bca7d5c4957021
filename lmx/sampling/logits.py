"""Which token comes next: temperature, top-k and top-p as pure functions of [B, V] float32 logits."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array

EXCLUDED = float(jnp.finfo(jnp.float32).min)  # the logit of a token that must not be drawn


def keep_top_k(logits: Array, k: int) -> Array:
    """Excludes every token below the k-th largest logit.

    Args:
      logits: [B, V] float32.
      k: at least 1; k >= V keeps everything. Tokens tied with the k-th largest are kept.

    Returns:
      [B, V] float32, excluded tokens at `EXCLUDED`.
    """
    chex.assert_rank(logits, 2)
    if k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][:, -1:]  # [B, 1]
    return jnp.where(logits >= threshold, logits, EXCLUDED)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keeps the smallest set of most likely tokens whose probability reaches p (the nucleus), never fewer than one.

    Args:
      logits: [B, V] float32, after temperature.
      p: in (0, 1]; 1 keeps everything. Tokens tied with the last one kept are kept.

    Returns:
      [B, V] float32, excluded tokens at `EXCLUDED`.

    Reference: Holtzman et al. (2020), arXiv:1904.09751, Eq. 2-3.
    """
    chex.assert_rank(logits, 2)
    if p >= 1.0:
        return logits
    ordered = -jnp.sort(-logits, axis=-1)  # [B, V], descending
    probs = jax.nn.softmax(ordered, axis=-1)
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    inside = (mass_before < p).at[:, 0].set(True)
    threshold = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)  # [B, 1]
    return jnp.where(logits >= threshold, logits, EXCLUDED)


def keep_vocabulary(logits: Array, vocab_size: int) -> Array:
    """Excludes ids from `vocab_size` on: the padding rows of an embedding table, which no tokenizer can decode.

    Args:
      logits: [B, V] float32.
      vocab_size: number of ids that may be drawn.

    Returns:
      [B, V] float32, excluded tokens at `EXCLUDED`.
    """
    chex.assert_rank(logits, 2)
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, EXCLUDED)


def draw(logits: Array, keys: Array, *, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Array:
    """Draws one token a row, each row with a key of its own, so that a row's token depends on nothing but that row.

    Temperature is applied first, then top-k, then top-p over what top-k left.

    Args:
      logits: [B, V] float32.
      keys: [B] typed PRNG keys; unused at temperature 0.
      temperature: >= 0; 0 takes the most likely token (the lowest id among ties).
      top_k: None = off.
      top_p: None = off.

    Returns:
      [B] int32 token ids.
    """
    chex.assert_rank(logits, 2)
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / temperature
    if top_k is not None:
        scaled = keep_top_k(scaled, top_k)
    if top_p is not None:
        scaled = keep_top_p(scaled, top_p)
    return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
