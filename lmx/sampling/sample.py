"""One sample of a request on the host: what it has drawn, where it ends, and what its caller is told."""

import zlib
from collections.abc import Sequence

import numpy as np

from lmx.sampling.request import Completion, Event, FinishReason, Request
from lmx.sampling.slots import STOP_IDS, RowSetup
from lmx.sampling.stopping import StoppedText
from lmx.tokenizer.protocol import Tokenizer

TopLogprobs = list[list[tuple[int, float]]]


class Sample:
    """A sample from its submission to its completion.

    Attributes:
      request_id: of its request.
      request: what was asked.
      tokens: drawn so far.
      done: its last event was made.
    """

    def __init__(
        self, request_id: int, index: int, request: Request, *, eos_ids: frozenset[int], tokenizer: Tokenizer | None
    ) -> None:
        """Sample number `index` of a request, nothing drawn."""
        sampling = request.sampling
        self.request_id, self.request = request_id, request
        self.tokens: list[int] = []
        self.done = False
        self._index = index
        self._ends = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else eos_ids)
        self._text = None if tokenizer is None else StoppedText(tokenizer, sampling.stop)
        self._shown = ""
        self._logprobs: list[np.ndarray] = []
        self._top: TopLogprobs | None = [] if sampling.top_logprobs else None

    @property
    def remaining(self) -> int:
        """Tokens that it may still draw."""
        return self.request.sampling.max_new_tokens - len(self.tokens)

    def fill(self, setup: RowSetup, row: int, *, vocab_size: int) -> None:
        """Writes how to draw into a row of host arrays that hold the values of a plain greedy row."""
        sampling, rows = self.request.sampling, setup.sampling
        prompt = np.asarray(self.request.prompt, "<i4")
        rows.key[row] = np.random.SeedSequence((self.request.seed, self._index, zlib.crc32(prompt.tobytes()))).generate_state(2)
        rows.temperature[row] = sampling.temperature
        rows.repetition_penalty[row] = sampling.repetition_penalty
        if sampling.top_k is not None:
            rows.top_k[row] = min(sampling.top_k, rows.top_k[row])
        if sampling.top_p is not None:
            rows.top_p[row] = sampling.top_p
        if sampling.min_p is not None:
            rows.min_p[row] = sampling.min_p
        rows.vocab_size[row] = min(vocab_size, sampling.vocab_size or vocab_size)
        setup.token[row] = prompt[-1]
        setup.remaining[row] = sampling.max_new_tokens
        known = sorted(self._ends)[:STOP_IDS]
        setup.stop_ids[row, : len(known)] = known
        setup.top_logprobs[row] = sampling.top_logprobs

    def take(self, tokens: Sequence[int], logprobs: np.ndarray, top: tuple[np.ndarray, np.ndarray] | None) -> Event:
        """What the device drew, as an event; what it drew behind the sample's end is dropped.

        Args:
          tokens: new ids, at least one.
          logprobs: [len(tokens)] float32.
          top: ids and log-probabilities of the most likely tokens, [len(tokens), n] each, n at least what was asked for.
        """
        count, text, reason = self._scan(tokens)
        self.tokens += tokens[:count]
        self._logprobs.append(logprobs[:count])
        new_top = None
        if self._top is not None and top is not None:
            new_top = self._listed(top[0][:count], top[1][:count])
            self._top += new_top
        if reason is None and self.remaining <= 0:
            reason = "length"
        return self._event(list(tokens[:count]), logprobs[:count], text, new_top, reason)

    def cancel(self) -> Event:
        """The last event of a sample that its caller gave up."""
        return self._event([], np.zeros(0, np.float32), "", None if self._top is None else [], "cancelled")

    def _scan(self, tokens: Sequence[int]) -> tuple[int, str, FinishReason | None]:
        """How many of the tokens belong to the sample, their text, and "stop" if the last of them ends it."""
        if self._text is None:
            end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
            return (len(tokens), "", None) if end is None else (end + 1, "", "stop")
        parts: list[str] = []
        for place, token in enumerate(tokens):
            if token in self._ends:
                return place + 1, "".join(parts), "stop"
            parts.append(self._text.push(token))
            if self._text.stopped:
                return place + 1, "".join(parts), "stop"
        return len(tokens), "".join(parts), None

    def _listed(self, ids: np.ndarray, logprobs: np.ndarray) -> TopLogprobs:
        count = self.request.sampling.top_logprobs
        return [
            list(zip(row[:count].tolist(), values[:count].tolist(), strict=True)) for row, values in zip(ids, logprobs, strict=True)
        ]

    def _event(
        self, tokens: list[int], logprobs: np.ndarray, text: str, top: TopLogprobs | None, reason: FinishReason | None
    ) -> Event:
        if reason is not None and self._text is not None:
            text += self._text.finish()
            if self._text.stopped:  # the rest of the text may have completed a stop text
                reason = reason if reason == "cancelled" else "stop"
        self._shown += text
        completion = None if reason is None else self._completion(reason)
        return Event(self.request_id, self._index, tokens, logprobs, text, top, completion)

    def _completion(self, reason: FinishReason) -> Completion:
        self.done = True
        logprobs = np.concatenate(self._logprobs) if self._logprobs else np.zeros(0, np.float32)
        return Completion(self.tokens, logprobs, reason, None if self._text is None else self._shown, self._top)
