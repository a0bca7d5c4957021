"""What a caller asks of the engine, and what it gets back; plain data, checked as soon as it is made."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**64 - 1
FinishReason = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and at most how many.

    The order is: repetition penalty, temperature, top-k, top-p over what top-k left, min-p over what both left.

    Attributes:
      max_new_tokens: at least 1.
      temperature: >= 0; 0 is greedy.
      top_k: draw among the k most likely tokens; None = off.
      top_p: draw from the nucleus of this probability; None = off.
      min_p: draw among the tokens at least this fraction as likely as the most likely one, in [0, 1); None = off.
      repetition_penalty: > 0; the logit of every token that stands in the prompt or was drawn before is divided by it where
        positive and multiplied by it where negative. 1 = off.
      stop_ids: ids that end a completion besides the engine's EOS ids, whether or not those are ignored.
      stop: texts that end a completion as soon as they stand in it; the completion's text ends before them.
      ignore_eos: go on after an EOS id.
      top_logprobs: how many of the most likely tokens to report at each step, at most 20; 0 = none.
      vocab_size: draw only ids below this (the tokenizer's size where the model's table has padding rows); None = the engine's.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = 0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < math.inf:  # NaN fails every comparison
            raise ValueError(f"temperature={self.temperature} must be a finite number of at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1], or None for no limit")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise ValueError(f"min_p={self.min_p} must lie in [0, 1), or None for no limit")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be a finite number above 0 (1 is off)")
        if any(index < 0 for index in self.stop_ids):
            raise ValueError(f"stop_ids={self.stop_ids} must be token ids, at least 0")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r} must be a tuple of texts that are not empty")
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"top_logprobs={self.top_logprobs} must lie in 0..{MAX_TOP_LOGPROBS}")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} must be at least 1, or None for the engine's")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be completed.

    Attributes:
      prompt: token ids, at least one.
      sampling: how to draw.
      seed: in 0..2**64-1. What sample j draws depends on the seed, j, the prompt and the sampling parameters alone.
      n: how many samples of the prompt, at least 1. More than the engine has slots queue up like requests of their own.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed={self.seed} must lie in 0..{MAX_SEED}")
        if self.n < 1:
            raise ValueError(f"n={self.n} samples: ask for at least 1")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt.

    Attributes:
      tokens: the new tokens; the EOS or stop id is included where one was drawn, and so are the tokens of a stop text.
      logprobs: [len(tokens)] float32, log-probability (nats) of each token under the model at the sampling temperature, before
        the repetition penalty, top-k, top-p, min-p and vocab_size change anything; under greedy decoding, at temperature 1.
      finish_reason: "stop" = an EOS id, stop id or stop text; "length" = max_new_tokens; "cancelled" = by the caller.
      text: the tokens' text without special tokens, ended before a stop text; None when the engine has no tokenizer.
      top_logprobs: for each token the `top_logprobs` most likely (id, log-probability) in falling order, in the sense of
        `logprobs`; None when not asked for.
    """

    tokens: list[int]
    logprobs: np.ndarray
    finish_reason: FinishReason
    text: str | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def finished(self) -> bool:
        """The model ended by itself; False when max_new_tokens or the caller cut it short."""
        return self.finish_reason == "stop"


@dataclasses.dataclass(frozen=True)
class Event:
    """News of one sample.

    Attributes:
      request_id: what `Engine.submit` returned.
      sample: which of the request's n samples, from 0.
      tokens: new ids since the sample's last event.
      logprobs: [len(tokens)] float32, as `Completion.logprobs`.
      text: text that is certain now; what may still become a stop text, or is half a character, comes with a later event.
        "" when the engine has no tokenizer. All texts of a sample together are its completion's.
      top_logprobs: of the new tokens, as `Completion.top_logprobs`.
      completion: the whole sample, on its last event; None before.
    """

    request_id: int
    sample: int
    tokens: list[int]
    logprobs: np.ndarray
    text: str = ""
    top_logprobs: list[list[tuple[int, float]]] | None = None
    completion: Completion | None = None
