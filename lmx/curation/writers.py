"""Texts written by an lmx model through the generation engine: the teacher of `WriteQuestions`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import lmx
from lmx.model.config import ScalarHead
from lmx.pipeline.artifact import LoadedModel
from lmx.sampling.generate import generate
from lmx.sampling.request import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelWriter:
    """Completes prompts; a model with a chat format gets each prompt as a message of a user.

    A prompt that is too long for the model loses its beginning, where the document stands; the request at its end stays.

    Attributes:
      path: artifact of a language model; every worker must be able to read it.
      max_new_tokens: of an answer.
      temperature: 0 is greedy.
      top_p: nucleus, None = off.
      batch: prompts at once.
    """

    path: str
    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float | None = None
    batch: int = 16

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"ModelWriter(batch={self.batch}) must be at least 1")
        self.sampling()

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)

    def open(self) -> Callable[[Sequence[str], Sequence[int]], list[str]]:
        """As `Writer.open`.

        Raises:
          ValueError: the artifact holds no language model, or one too short for `max_new_tokens`.
        """
        loaded = _loaded(self.path)
        config = loaded.model.config
        if isinstance(config.head, ScalarHead):
            raise ValueError(f"{self.path} holds a model with a scalar head, which scores texts and can't write any")
        if config.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt: the model in {self.path} has "
                f"max_length={config.max_length}"
            )
        return functools.partial(_write, loaded, sampling=self.sampling(), batch=self.batch)


@functools.lru_cache(maxsize=2)
def _loaded(path: str) -> LoadedModel:
    loaded: LoadedModel = lmx.load(path)
    return loaded


def _write(loaded: LoadedModel, prompts: Sequence[str], seeds: Sequence[int], *, sampling: Sampling, batch: int) -> list[str]:
    tokenizer, chat = loaded.tokenizer, loaded.chat
    room = loaded.model.config.max_length - sampling.max_new_tokens
    if chat is not None:
        sampling = dataclasses.replace(sampling, stop_ids=chat.stop_ids)
    completions = generate(
        loaded.model,
        loaded.params,
        [_fitting(loaded, prompt, room) for prompt in prompts],
        sampling=sampling,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        seed=list(seeds),
        batch_size=batch,
    )
    return [tokenizer.decode(completion.tokens) for completion in completions]


def _fitting(loaded: LoadedModel, prompt: str, room: int) -> list[int]:
    """The prompt's ids, its beginning cut off until they fit."""
    while True:
        ids = _encoded(loaded, prompt)
        if len(ids) <= room:
            return ids
        cut = max(len(prompt) * (len(ids) - room) // len(ids), 1)
        if cut >= len(prompt):
            raise ValueError(f"the model's max_length leaves {room} tokens, fewer than its chat format alone takes")
        prompt = prompt[cut:]


def _encoded(loaded: LoadedModel, prompt: str) -> list[int]:
    tokenizer = loaded.tokenizer
    if loaded.chat is not None:
        return loaded.chat.encode(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True).ids
    return [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode(prompt)]
