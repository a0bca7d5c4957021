"""Batched generation: one prefill over right-padded prompts, then a decode loop that stops when every row is done."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params, PyTree
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model
from lmx.sampling import logits as filters
from lmx.sampling import padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and at most how many.

    Attributes:
      max_new_tokens: at least 1.
      temperature: >= 0; 0 is greedy.
      top_k: draw among the k most likely tokens; None = off.
      top_p: draw from the nucleus of this probability; None = off.
      vocab_size: draw only ids below this (the tokenizer's size where the model's table has padding rows); None = all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1], or None for no limit")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} must be at least 1, or None for the model's")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt.

    Attributes:
      tokens: the new tokens, EOS included when it was drawn.
      logprobs: [len(tokens)] float32, log-probability (nats) of each token under the model at the sampling temperature, before
        top-k, top-p and vocab_size exclude anything; under greedy decoding, at temperature 1.
      finished: the model ended with EOS; False when max_new_tokens cut it short.
    """

    tokens: list[int]
    logprobs: np.ndarray
    finished: bool


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    eos_id: int,
    pad_id: int = 0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> list[Completion]:
    """Completes every prompt.

    The randomness of a request comes from its seed and its prompt alone, never from its place among the others. Prompts are
    padded to power-of-two lengths and grouped by them, and the compiled loop is kept for later calls with the same model, so few
    shapes are compiled. (A request may meet another number of rows in another call; matmuls of another shape may round the last
    bit of a logit otherwise, which can only matter where two tokens are tied to that precision.)

    Args:
      model: a language model.
      params: its parameters.
      prompts: token ids, at least one each.
      sampling: how to draw, and how many tokens at most.
      eos_id: token that ends a completion.
      pad_id: token that fills rows; it is never seen by the model.
      seed: one for all requests or one each, in 0..2**32-1. To draw several completions of a prompt, repeat it with other seeds.
      batch_size: most rows at once.

    Returns:
      One completion a prompt, in the order given.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, or a prompt too long for the model's max_length.
    """
    _check(model, prompts, sampling)
    seeds = _seeds(seed, len(prompts))
    completions: dict[int, Completion] = {}
    max_length = model.config.max_length
    for length, group in padding.groups_by_length([len(p) for p in prompts], max_length=max_length, batch_size=batch_size):
        rows = padding.power_of_two(len(group), least=1, most=batch_size)
        tokens, lengths = padding.pad_rows([prompts[i] for i in group], rows=rows, length=length, pad_id=pad_id)
        entropy = np.zeros((rows, 2), np.uint32)
        entropy[: len(group)] = [(seeds[i], _digest(prompts[i])) for i in group]
        drawn = _generate_rows(
            params,
            tokens,
            lengths,
            entropy,
            decode=model.decode,
            init_cache=model.init_cache,
            cache_length=min(length + sampling.max_new_tokens, max_length),
            sampling=sampling,
            eos_id=eos_id,
            pad_id=pad_id,
        )
        new_tokens, logprobs = map(np.asarray, drawn)
        for row, index in enumerate(group):
            completions[index] = _completion(new_tokens[row], logprobs[row], eos_id)
    return [completions[index] for index in range(len(prompts))]


def _check(model: Model, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    config = model.config
    if isinstance(config.head, ScalarHead):
        raise ValueError("generate needs a language model, but this one has a scalar head (a reward model)")
    padding.check_ids(prompts, vocab_size=config.vocab_size, what="prompt")
    for index, prompt in enumerate(prompts):
        if len(prompt) + sampling.max_new_tokens > config.max_length:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; with max_new_tokens={sampling.max_new_tokens} it exceeds the model's "
                f"max_length={config.max_length}; shorten the prompt or ask for fewer tokens"
            )


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts; give one seed for all or one each")
    if any(not 0 <= s < 2**32 for s in seeds):
        raise ValueError(f"seeds must lie in 0..{2**32 - 1}; got {next(s for s in seeds if not 0 <= s < 2**32)}")
    return seeds


def _digest(prompt: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(prompt, "<i4").tobytes())


def _completion(tokens: np.ndarray, logprobs: np.ndarray, eos_id: int) -> Completion:
    ends = np.flatnonzero(tokens == eos_id)
    count = int(ends[0]) + 1 if len(ends) else len(tokens)
    return Completion(tokens[:count].tolist(), logprobs[:count], finished=bool(len(ends)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Loop:
    """State of the decode loop; `step` tokens of each row are drawn."""

    step: Array  # [] int32
    done: Array  # [B] bool
    tokens: Array  # [B, max_new_tokens] int32
    logprobs: Array  # [B, max_new_tokens] float32
    cache: PyTree


@partial(jax.jit, static_argnames=("decode", "init_cache", "cache_length", "sampling", "eos_id", "pad_id"))
def _generate_rows(
    params: Params,
    tokens: Array,
    lengths: Array,
    entropy: Array,
    *,
    decode: Callable[..., tuple[Outputs, PyTree]],
    init_cache: Callable[[int, int], PyTree],
    cache_length: int,
    sampling: Sampling,
    eos_id: int,
    pad_id: int,
) -> tuple[Array, Array]:
    """Tokens and log-probabilities, each [B, max_new_tokens]; pad_id and 0 behind the end of a row."""
    rows = tokens.shape[0]
    keys = jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(entropy)

    def extend(loop: _Loop, outputs: Outputs, cache: PyTree) -> _Loop:
        token, logprob = _next_token(outputs, jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step), sampling)
        token = jnp.where(loop.done, pad_id, token)
        logprob = jnp.where(loop.done, 0.0, logprob)
        return _Loop(
            step=loop.step + 1,
            done=loop.done | (token == eos_id),
            tokens=loop.tokens.at[:, loop.step].set(token),
            logprobs=loop.logprobs.at[:, loop.step].set(logprob),
            cache=cache,
        )

    def decode_step(loop: _Loop) -> _Loop:
        batch = padding.Tokens(
            tokens=loop.tokens[:, loop.step - 1][:, None],
            segment_ids=(~loop.done).astype(jnp.int32)[:, None],
            positions=(lengths + loop.step - 1)[:, None],
        )
        return extend(loop, *decode(params, batch, loop.cache))

    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        done=lengths == 0,
        tokens=jnp.full((rows, sampling.max_new_tokens), pad_id, jnp.int32),
        logprobs=jnp.zeros((rows, sampling.max_new_tokens), jnp.float32),
        cache=None,
    )
    outputs, cache = decode(params, padding.right_padded(tokens, lengths), init_cache(rows, cache_length))
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    outputs = dataclasses.replace(outputs, hidden=jnp.take_along_axis(outputs.hidden, last, axis=1))  # [B, 1, D]
    loop = extend(start, outputs, cache)
    loop = jax.lax.while_loop(lambda s: (s.step < sampling.max_new_tokens) & ~jnp.all(s.done), decode_step, loop)
    return loop.tokens, loop.logprobs


def _next_token(outputs: Outputs, keys: Array, sampling: Sampling) -> tuple[Array, Array]:
    """Draws from the single position of `outputs`: token [B] int32 and its log-probability [B] float32."""
    logits = head.logits(outputs)[:, 0]  # [B, V]
    allowed = logits if sampling.vocab_size is None else filters.keep_vocabulary(logits, sampling.vocab_size)
    token = filters.draw(allowed, keys, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return token, likelihood.token_logprobs(logits / (sampling.temperature or 1.0), token)
