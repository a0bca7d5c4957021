"""The decode program: several tokens for every active slot in one loop on the device."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Params
from lmx.kernels import head
from lmx.sampling import logits as drawing
from lmx.sampling.padding import Tokens
from lmx.sampling.request import MAX_TOP_LOGPROBS
from lmx.sampling.slots import Layout, Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one call of `decode` drew; the first `counts` entries of each row count.

    Attributes:
      tokens: [B, steps] int32.
      logprobs: [B, steps] float32.
      counts: [B] int32.
      top_ids: [B, steps, MAX_TOP_LOGPROBS] int32, most likely tokens; for rows that asked alone, as the next.
      top_logprobs: [B, steps, MAX_TOP_LOGPROBS] float32.
    """

    tokens: Array
    logprobs: Array
    counts: Array
    top_ids: Array
    top_logprobs: Array


@partial(jax.jit, donate_argnames="slots", static_argnames=("layout", "steps"))
def decode(params: Params, slots: Slots, stopped: Array, patience: Array, *, layout: Layout, steps: int) -> tuple[Slots, Drawn]:
    """Draws up to `steps` tokens for every active row, without the host.

    Args:
      params: the model's.
      slots: the pool.
      stopped: [B] bool, rows that the host has ended.
      patience: [] int32; the loop ends early when this many rows have finished and others wait for their slots.
      layout: static.
      steps: static.
    """
    rows = slots.active.shape[0]
    slots = dataclasses.replace(slots, active=slots.active & ~stopped)
    before = jnp.sum(slots.active, dtype=jnp.int32)
    empty = Drawn(
        tokens=jnp.zeros((rows, steps), jnp.int32),
        logprobs=jnp.zeros((rows, steps), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        top_ids=jnp.zeros((rows, steps, MAX_TOP_LOGPROBS), jnp.int32),
        top_logprobs=jnp.zeros((rows, steps, MAX_TOP_LOGPROBS), jnp.float32),
    )

    def unfinished(loop: tuple[Array, Slots, Drawn]) -> Array:
        step, slots, _ = loop
        left = jnp.sum(slots.active, dtype=jnp.int32)
        return (step < steps) & (left > 0) & (before - left < patience)

    def advance(loop: tuple[Array, Slots, Drawn]) -> tuple[Array, Slots, Drawn]:
        step, slots, drawn = loop
        active, setup = slots.active, slots.setup
        batch = Tokens(setup.token[:, None], active.astype(jnp.int32)[:, None], slots.cache.lengths[:, None])
        outputs, cache = layout.decode(params, batch, slots.cache)
        logits = head.logits(outputs)[:, 0]  # [B, V]
        token, logprob, normalizer = drawing.next_token(logits, setup.sampling, drawn=slots.drawn, seen=slots.seen, active=active)
        token = jnp.where(active, token, setup.token)
        drawn = _record(drawn, step, token, logprob, _top(logits, slots, normalizer), active)
        return step + 1, layout.pin(_advanced(dataclasses.replace(slots, cache=cache), token)), drawn

    _, slots, drawn = jax.lax.while_loop(unfinished, advance, (jnp.zeros((), jnp.int32), layout.pin(slots), empty))
    return slots, drawn


def _top(logits: Array, slots: Slots, normalizer: Array) -> tuple[Array, Array]:
    """Ids and log-probabilities of the most likely tokens, [B, MAX_TOP_LOGPROBS] each; zeros when no active row asks."""
    rows, vocabulary = logits.shape
    shape, count = (rows, MAX_TOP_LOGPROBS), min(MAX_TOP_LOGPROBS, vocabulary)

    def found() -> tuple[Array, Array]:
        ids, logprobs = drawing.top_logprobs(logits, slots.setup.sampling, normalizer, count)
        widen = partial(jnp.pad, pad_width=((0, 0), (0, MAX_TOP_LOGPROBS - count)))
        return widen(ids), widen(logprobs)

    asked = jnp.any(slots.active & (slots.setup.top_logprobs > 0))
    return jax.lax.cond(asked, found, lambda: (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)))


def _record(drawn: Drawn, step: Array, token: Array, logprob: Array, top: tuple[Array, Array], active: Array) -> Drawn:
    """The record with one more column. An active row has drawn at every step so far, so its column is the step's."""
    return Drawn(
        tokens=drawn.tokens.at[:, step].set(token),
        logprobs=drawn.logprobs.at[:, step].set(logprob),
        counts=drawn.counts + active,
        top_ids=drawn.top_ids.at[:, step].set(top[0]),
        top_logprobs=drawn.top_logprobs.at[:, step].set(top[1]),
    )


def _advanced(slots: Slots, token: Array) -> Slots:
    """The pool after its active rows have drawn a token [B]; rows that ended are inactive."""
    active, setup = slots.active, slots.setup
    remaining = setup.remaining - active
    ended = (remaining <= 0) | jnp.any(setup.stop_ids == token[:, None], axis=-1)
    rows, vocabulary = slots.seen.shape
    marked = slots.seen.at[jnp.arange(rows), jnp.where(active, token, vocabulary)].set(True, mode="drop")
    return dataclasses.replace(
        slots,
        setup=dataclasses.replace(setup, token=token, remaining=remaining),
        active=active & ~ended,
        drawn=slots.drawn + active,
        seen=marked,
    )
