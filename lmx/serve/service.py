"""What the endpoints share: the model's names and limits, its tokenizer, the engine's thread, and a way to score text."""

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmx.sampling.request import Completion
from lmx.sampling.score import Score
from lmx.serve.worker import Worker
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A model on duty.

    Attributes:
      name: id of the model.
      worker: runs the engine.
      tokenizer: the model's.
      chat: its chat format, None where it has none.
      max_length: most tokens of a prompt and its completion together.
      fingerprint: of the model, for clients that compare answers.
      check_pairs: raises ValueError for (context, continuation) pairs that `score` can't take.
      score: (pairs, top) -> scores; to be called in the worker's thread.
      created: Unix time at which it went on duty, in seconds.
    """

    name: str
    worker: Worker
    tokenizer: Tokenizer
    chat: Chat | None
    max_length: int
    fingerprint: str
    check_pairs: Callable[[Pairs], None]
    score: Callable[[Pairs, int], list[Score]]
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields that begin every answer."""
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": f"lmx_{self.fingerprint[:12]}",
        }

    def description(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lmx"}


def usage(prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> dict[str, int]:
    """Counts of tokens; a prompt counts once, however many samples it has."""
    prompt, completion = sum(map(len, prompts)), sum(len(item.tokens) for item in completions)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
