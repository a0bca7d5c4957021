"""Which token comes next, for rows that each have parameters of their own: pure functions of [B, V] float32 logits.

Nothing here is sorted: the filters find a threshold for each row, from its most likely tokens or, where those don't suffice, by
bisection. What a row draws depends on that row alone.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array

EXCLUDED = float(jnp.finfo(jnp.float32).min)  # the logit of a token that must not be drawn
SHORT_LIST = 256  # most likely tokens among which the filters look first
_BLOCK = 128  # tokens whose probabilities are summed together before one of them is looked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """How each row draws; a filter that is off has a value that keeps everything.

    Attributes:
      key: [B, 2] uint32, raw threefry key of the row.
      temperature: [B] float32, 0 = greedy.
      top_k: [B] int32, V or more = off.
      top_p: [B] float32, 1 = off.
      min_p: [B] float32, 0 = off.
      repetition_penalty: [B] float32, 1 = off.
      vocab_size: [B] int32, ids from it on are never drawn.
    """

    key: Array
    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    vocab_size: Array


def next_token(logits: Array, rows: RowSampling, *, drawn: Array, seen: Array, active: Array) -> tuple[Array, Array, Array]:
    """Draws one token a row.

    Args:
      logits: [B, V] float32.
      rows: how to draw.
      drawn: [B] int32, tokens that the row has drawn before: it picks the random number.
      seen: [B, V] bool, tokens that the repetition penalty weakens.
      active: [B] bool; the other rows' results mean nothing and cost nothing.

    Returns:
      token [B] int32; its log-probability [B] float32 (at the row's temperature, or 1 when greedy; before penalty and filters); and
      the log-normalizer [B] float32 of such log-probabilities.
    """
    chex.assert_rank(logits, 2)
    normalizer = jax.nn.logsumexp(_tempered(logits, rows.temperature), axis=-1)
    penalized = active & (rows.repetition_penalty != 1)
    weakened = jax.lax.cond(jnp.any(penalized), lambda: penalize(logits, seen, rows.repetition_penalty), lambda: logits)  # [B, V]
    allowed = keep_vocabulary(weakened, rows.vocab_size)
    greedy = most_likely(allowed)
    sampled = active & (rows.temperature > 0)
    token = jax.lax.cond(
        jnp.any(sampled),
        lambda: jnp.where(rows.temperature > 0, _sample(allowed, rows, drawn, sampled), greedy),
        lambda: greedy,
    )
    drawn_logits = jnp.take_along_axis(logits, token[:, None], axis=-1)  # [B, 1]
    return token, _tempered(drawn_logits, rows.temperature)[:, 0] - normalizer, normalizer


def top_logprobs(logits: Array, rows: RowSampling, normalizer: Array, count: int) -> tuple[Array, Array]:
    """The `count` most likely tokens of each row: ids [B, count] int32 and log-probabilities as `next_token` gives them."""
    best, ids = jax.lax.top_k(logits, count)
    return ids, _tempered(best, rows.temperature) - normalizer[:, None]


def penalize(logits: Array, seen: Array, penalty: Array) -> Array:
    """Logits [B, V] of seen tokens [B, V] divided by the row's penalty [B] where positive, multiplied where negative.

    Reference: Keskar et al. (2019), arXiv:1909.05858, section 4.1; with the sign as transformers treats it.
    """
    factor = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)


def keep_vocabulary(logits: Array, vocab_size: Array | int) -> Array:
    """Excludes ids from `vocab_size` ([B] or one for all) on: padding rows of a table, which no tokenizer can decode."""
    limit = jnp.asarray(vocab_size).reshape(-1, 1)
    return jnp.where(jnp.arange(logits.shape[-1]) < limit, logits, EXCLUDED)


def most_likely(logits: Array) -> Array:
    """[B] int32, the lowest id among those of the greatest logit.

    Two plain reductions: XLA's CPU backend takes four times as long for an argmax, whose reduction is over pairs.
    """
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    best = jnp.max(logits, axis=-1, keepdims=True)
    # A row of NaN has no best; its token is the last id, as good as any and inside the vocabulary.
    return jnp.min(jnp.where(logits == best, ids, logits.shape[-1] - 1), axis=-1)


def keep_threshold(logits: Array, *, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """The logit below which a row's tokens are excluded by top-k, then top-p over what top-k left, then min-p.

    Tokens tied with the last one kept are kept. At least one token is.

    Args:
      logits: [B, V] float32, after temperature.
      top_k: [B] int32, at least 1; V or more keeps everything.
      top_p: [B] float32 in (0, 1], the mass of the smallest set of most likely tokens that is kept; 1 keeps everything.
      min_p: [B] float32 in [0, 1), least probability kept as a fraction of the greatest; 0 keeps everything.

    Returns:
      [B] float32.

    Reference: Holtzman et al. (2020), arXiv:1904.09751, Eq. 2-3 (top-p); Nguyen et al. (2024), arXiv:2407.01082 (min-p).
    """
    vocabulary = logits.shape[-1]
    best = jax.lax.top_k(logits, min(vocabulary, SHORT_LIST))[0]  # [B, n], falling
    peak = best[:, :1]
    by_min_p = jnp.where(min_p > 0, peak[:, 0] + jnp.log(jnp.where(min_p > 0, min_p, 1.0)), EXCLUDED)
    by_top_k = _top_k_threshold(logits, best, top_k)
    kept = jnp.where(logits >= by_top_k[:, None], jnp.exp(logits - peak), 0.0)  # [B, V]
    by_top_p = _top_p_threshold(logits, kept, best, top_p)
    return jnp.minimum(jnp.maximum(jnp.maximum(by_top_k, by_top_p), by_min_p), peak[:, 0])


def pick(weights: Array, fraction: Array) -> Array:
    """The token at which the running sum of a row's weights first exceeds a fraction of their total.

    With a uniform fraction that is a draw in proportion to the weights (inversion). Sums are taken over blocks first.

    Args:
      weights: [B, V] float32, at least 0, not all 0.
      fraction: [B] float32 in [0, 1).

    Returns:
      [B] int32; a token of weight 0 is never picked.
    """
    batch, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(batch, -1, _BLOCK)
    sums = jnp.sum(blocks, axis=-1)  # [B, blocks]
    target = fraction * jnp.sum(sums, axis=-1)
    block, rest = _first_above(sums, target)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [B, _BLOCK]
    return block * _BLOCK + _first_above(inside, rest)[0]


def _tempered(logits: Array, temperature: Array) -> Array:
    """Logits [B, n] divided by the row's temperature [B], or by 1 where that is 0."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]


def _sample(allowed: Array, rows: RowSampling, drawn: Array, sampled: Array) -> Array:
    # A temperature below 1 would make -inf of what is excluded.
    tempered = jnp.maximum(_tempered(allowed, rows.temperature), EXCLUDED)
    filtered = sampled & ((rows.top_k < allowed.shape[-1]) | (rows.top_p < 1) | (rows.min_p > 0))
    threshold = jax.lax.cond(
        jnp.any(filtered),
        lambda: keep_threshold(tempered, top_k=rows.top_k, top_p=rows.top_p, min_p=rows.min_p),
        lambda: jnp.full(allowed.shape[0], EXCLUDED),
    )
    peak = jnp.max(tempered, axis=-1, keepdims=True)
    weights = jnp.where(tempered >= threshold[:, None], jnp.exp(tempered - peak), 0.0)
    return pick(weights, _uniform(rows.key, drawn))


def _uniform(keys: Array, drawn: Array) -> Array:
    """[B] float32 in [0, 1) from raw keys [B, 2] and the number of tokens drawn before [B]."""
    typed = jax.random.wrap_key_data(keys, impl="threefry2x32")
    return jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count)))(typed, drawn)


def _first_above(weights: Array, target: Array) -> tuple[Array, Array]:
    """First index of weights [B, n] at which the running sum exceeds target [B], and the target less the sum before it."""
    running = jnp.cumsum(weights, axis=-1)
    positions = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    # Rounding may leave the target at or above the last sum: then the last token with any weight is meant.
    last = jnp.max(jnp.where(weights > 0, positions, 0), axis=-1)
    index = jnp.minimum(jnp.sum(running <= target[:, None], axis=-1, dtype=jnp.int32), last)
    before = jnp.take_along_axis(running - weights, index[:, None], axis=-1)[:, 0]
    return index, target - before


def _top_k_threshold(logits: Array, best: Array, top_k: Array) -> Array:
    """[B], the k-th greatest logit; EXCLUDED where k keeps everything."""
    vocabulary, listed = logits.shape[-1], best.shape[-1]
    short = jnp.take_along_axis(best, jnp.minimum(top_k, listed)[:, None] - 1, axis=-1)[:, 0]
    short = jnp.where(top_k >= vocabulary, EXCLUDED, short)
    long = (top_k > listed) & (top_k < vocabulary)
    return _where_long(long, short, lambda: _bisect(logits, jnp.ones_like(logits), top_k.astype(jnp.float32)))


def _top_p_threshold(logits: Array, kept: Array, best: Array, top_p: Array) -> Array:
    """[B], the least logit of the nucleus among the `kept` weights [B, V]; EXCLUDED where p keeps everything."""
    vocabulary, listed = logits.shape[-1], best.shape[-1]
    target = top_p * jnp.sum(kept, axis=-1)
    listed_weights = jnp.exp(best - best[:, :1])
    before = jnp.cumsum(listed_weights, axis=-1) - listed_weights
    inside = (before < target[:, None]).at[:, 0].set(True)
    short = jnp.min(jnp.where(inside, best, jnp.inf), axis=-1)
    off = top_p >= 1
    long = inside[:, -1] & ~off & (listed < vocabulary)
    found = _where_long(long, short, lambda: _bisect(logits, kept, target))
    return jnp.where(off, EXCLUDED, found)


def _where_long(long: Array, short: Array, search: Callable[[], Array]) -> Array:
    """The search's thresholds for the rows `long`, the short list's for the others, whoever else is in the batch."""
    return jax.lax.cond(jnp.any(long), lambda: jnp.where(long, search(), short), lambda: short)


def _bisect(logits: Array, weights: Array, target: Array) -> Array:
    """The greatest threshold such that the weights [B, V] of logits at or above it add up to the target [B]: [B] float32.

    The threshold is built bit by bit in an integer code of floats that keeps their order.
    """
    codes = _ordered_code(logits)

    def step(index: Array, code: Array) -> Array:
        candidate = code | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        mass = jnp.sum(jnp.where(codes >= candidate[:, None], weights, 0.0), axis=-1)
        return jnp.where(mass >= target, candidate, code)

    code = jax.lax.fori_loop(0, 32, step, jnp.zeros(logits.shape[0], jnp.uint32))
    return jnp.maximum(_float_of_code(code), EXCLUDED)


def _ordered_code(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _float_of_code(code: Array) -> Array:
    bits = jnp.where(code >> 31 == 1, code & jnp.uint32((1 << 31) - 1), ~code)
    value = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isnan(value), EXCLUDED, value)
