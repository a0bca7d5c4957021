"""Completions of a list of prompts in one call."""

from collections.abc import Sequence

from lmx.core.types import Params
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model
from lmx.sampling import padding
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Completion, Request, Sampling

__all__ = ["Completion", "Sampling", "generate"]

_DECODE_STEPS = 32  # nobody watches, so the host is asked seldom; the loop ends early when rows wait to be replaced
_PREFILL_TOKENS = 8192  # likewise nobody waits for the next token


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

    The randomness of a request comes from its seed and its prompt alone, never from its place among the others. What was compiled
    is kept for later calls with the same model. (Matrix products of another shape may round the last bit of a logit otherwise,
    which can only matter where two tokens are tied to that precision.)

    Args:
      model: a language model.
      params: its parameters.
      prompts: token ids, at least one each.
      sampling: how to draw, and how many tokens at most.
      eos_id: token that ends a completion.
      pad_id: token that fills rows; it is never seen by the model.
      seed: one for all requests or one each, in 0..2**64-1. To draw several completions of a prompt, repeat it with other seeds.
      batch_size: most rows at once.

    Returns:
      One completion a prompt, in the order given.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, or a prompt too long for the model's max_length.
    """
    _check(model, prompts, sampling)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed for all or one each")
    if not prompts:
        return []
    config = EngineConfig(
        slots=padding.power_of_two(len(prompts), least=1, most=batch_size),
        max_length=model.config.max_length,
        decode_steps=min(_DECODE_STEPS, padding.power_of_two(sampling.max_new_tokens, least=1, most=_DECODE_STEPS)),
        prefill_tokens=_PREFILL_TOKENS,
    )
    engine = Engine(model, params, config=config, eos_ids=[eos_id], pad_id=pad_id)
    requests = [Request(prompt=prompt, sampling=sampling, seed=one) for prompt, one in zip(prompts, seeds, strict=True)]
    return [completions[0] for completions in engine.run(requests)]


def _check(model: Model, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """What the engine checks too, with the number of the prompt."""
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
