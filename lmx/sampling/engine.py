"""The generation engine: continuous batching over a fixed pool of slots."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lmx.core.types import Params
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model
from lmx.sampling import padding, prefilling, slots
from lmx.sampling.pool import Pool
from lmx.sampling.prefilling import Fill
from lmx.sampling.request import Completion, Event, Request
from lmx.sampling.sample import Sample
from lmx.sharding.rules import DEFAULT_RULES, Rules
from lmx.tokenizer.protocol import Tokenizer

_IDLE_CHUNKS = 8  # prompts' tokens in one step, in chunks, while nobody waits for the next token
_PATIENCE = 8  # a step ends early when one in so many rows has finished and others wait


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
      slots: rows that are decoded together.
      max_length: most tokens of a row, prompt and new ones together; at most the model's max_length.
      prefill_chunk: most tokens of a prompt in one call; longer prompts take several steps, between which the others go on.
      decode_steps: tokens of a row in one call of `step`.
      kv_dtype: "int8" = keys and values in 8 bits; None = the activation dtype.
      prefill_tokens: most tokens of prompts in one step while rows are decoding, padding included; None = `prefill_chunk`. More
        fills the slots sooner and delays the rows that are decoding.
    """

    slots: int = 8
    max_length: int
    prefill_chunk: int = 256
    decode_steps: int = 8
    kv_dtype: str | None = None
    prefill_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "max_length", "prefill_chunk", "decode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of the engine must be at least 1")
        if self.prefill_tokens is not None and self.prefill_tokens < 1:
            raise ValueError(f"prefill_tokens={self.prefill_tokens} must be at least 1, or None for prefill_chunk")


class Engine:
    """Completes requests in a pool of slots; a slot whose sample has ended is given to the next one at once.

    The tokens of a sample depend on its request alone, not on what else is in the pool or which slot it has. (Matrix products of
    another shape may round the last bit of a logit otherwise, which can only matter where two tokens are tied to that precision.)

    Programs are compiled when they are first needed and then kept for all engines of the same model and sizes: one for decoding,
    which serves any mix of sampling parameters, for each power of two of the pool's row length, and a few for prompts. `warm_up`
    compiles them all. Not for use by several threads at once.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        config: EngineConfig,
        eos_ids: Sequence[int],
        pad_id: int = 0,
        tokenizer: Tokenizer | None = None,
        vocab_size: int | None = None,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        """An engine with an empty pool.

        Args:
          model: a language model; for a mesh, one built with `lmx.train.execution.build_execution(mesh, rules)`.
          params: its parameters.
          config: sizes.
          eos_ids: ids that end a completion; negative ones never occur.
          pad_id: id that fills rows; it is never seen by the model.
          tokenizer: makes texts of the tokens and allows stop texts; None = ids only.
          vocab_size: ids from it on are never drawn; None = the tokenizer's size if there is one, else the model's.
          mesh: devices to spread parameters, slots and heads over; None = one device.
          rules: logical axis -> mesh axes.

        Raises:
          ValueError: a scalar head, or sizes that the model does not have.
        """
        if isinstance(model.config.head, ScalarHead):
            raise ValueError("generation needs a language model, but this one has a scalar head (a reward model)")
        if config.max_length > model.config.max_length:
            raise ValueError(f"max_length={config.max_length} exceeds the model's max_length={model.config.max_length}")
        table = model.config.vocab_size
        size = vocab_size if vocab_size is not None else table if tokenizer is None else tokenizer.vocab_size
        if not 1 <= size <= table:
            raise ValueError(f"vocab_size={size} must lie in 1..{table}, the rows of the model's table")
        self.config, self.vocab_size = config, size
        self._eos_ids, self._pad_id, self._tokenizer = frozenset(eos_ids), pad_id, tokenizer
        self._pool = Pool(
            model, params, rows=config.slots, max_length=config.max_length, kv_dtype=config.kv_dtype, mesh=mesh, rules=rules
        )
        self._ids = itertools.count()
        self._queue: collections.deque[Sample] = collections.deque()
        self._fills: list[Fill] = []
        self._running: dict[int, Sample] = {}
        self._free = list(range(config.slots))
        self._stopped = np.zeros(config.slots, bool)
        self._news: list[Event] = []  # of cancelled samples

    def update_params(self, params: Params) -> None:
        """Replaces the parameters between steps, without recompilation; running samples go on under the new ones.

        Raises:
          ValueError: they are not shaped like the model's.
        """
        self._pool.update_params(params)

    def check(self, request: Request) -> None:
        """Raises ValueError, one sentence, if the request can't be served."""
        sampling, length = request.sampling, len(request.prompt)
        padding.check_ids([request.prompt], vocab_size=self.vocab_size, what="prompt")
        if length + sampling.max_new_tokens > self.config.max_length:
            raise ValueError(
                f"the prompt has {length} tokens; with max_new_tokens={sampling.max_new_tokens} it exceeds the engine's "
                f"max_length={self.config.max_length}; shorten the prompt or ask for fewer tokens"
            )
        if sampling.stop and self._tokenizer is None:
            raise ValueError(f"stop={sampling.stop!r} needs an engine with a tokenizer; give token ids in stop_ids instead")
        if sampling.vocab_size is not None and sampling.vocab_size > self.vocab_size:
            raise ValueError(f"vocab_size={sampling.vocab_size} exceeds the engine's {self.vocab_size}")

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id.

        Raises:
          ValueError: as `check`; nothing is queued then.
        """
        self.check(request)
        request_id = next(self._ids)
        for index in range(request.n):
            self._queue.append(Sample(request_id, index, request, eos_ids=self._eos_ids, tokenizer=self._tokenizer))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Ends the request's samples that are not done and frees their slots; the next step has their last events."""
        gone = [sample for sample in self._queue if sample.request_id == request_id]
        self._queue = collections.deque(sample for sample in self._queue if sample.request_id != request_id)
        for fill in [fill for fill in self._fills if fill.samples[0].request_id == request_id]:
            self._fills.remove(fill)
            self._free += fill.slots
            gone += fill.samples
        for slot in [slot for slot, sample in self._running.items() if sample.request_id == request_id]:
            gone.append(self._running[slot])
            self._release(slot)
        self._news += [sample.cancel() for sample in gone]

    def step(self) -> list[Event]:
        """Fills free slots, computes a piece of their prompts, and draws `decode_steps` tokens; [] when idle."""
        news, self._news = self._news, []
        self._admit()
        if not self._fills and not self._running:
            return news
        self._fit_pool()
        self._start(self._prefill())
        return news + (self._decode() if self._running else [])

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._queue or self._fills or self._running or self._news)

    @property
    def queued(self) -> int:
        """Samples that wait for a slot."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Samples that hold a slot."""
        return len(self._running) + sum(len(fill.slots) for fill in self._fills)

    def run(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[list[Completion]]:
        """Completes requests.

        Args:
          requests: checked, all of them, before any is queued.
          progress: called with the number of samples done and that of all, whenever some are done.

        Returns:
          For each request its n completions.

        Raises:
          ValueError: a request can't be served.
          RuntimeError: other requests are under way, whose events would be lost.
        """
        if self.busy:
            raise RuntimeError("the engine has other requests under way; finish them with step() before run()")
        for request in requests:
            self.check(request)
        ids = [self.submit(request) for request in requests]
        done: dict[tuple[int, int], Completion] = {}
        total = sum(request.n for request in requests)
        while self.busy:
            ended = [event for event in self.step() if event.completion is not None]
            done |= {(event.request_id, event.sample): event.completion for event in ended if event.completion is not None}
            if progress is not None and ended:
                progress(len(done), total)
        return [[done[request_id, j] for j in range(request.n)] for request_id, request in zip(ids, requests, strict=True)]

    def warm_up(self, longest_prompt: int | None = None) -> None:
        """Compiles what requests will need, so that none of them waits for it.

        Args:
          longest_prompt: tokens of the longest prompt to expect; None = one that is computed in one call (`prefill_chunk`).

        Raises:
          RuntimeError: requests are under way.
        """
        if self.busy:
            raise RuntimeError("the engine has requests under way; warm it up before the first one")
        config = self.config
        longest = min(longest_prompt or config.prefill_chunk, config.max_length)
        self._pool.warm_up(steps=config.decode_steps, prefill_chunk=config.prefill_chunk, longest=longest)

    def _admit(self) -> None:
        """Gives free slots to the samples that wait, those of one request together."""
        while self._free and self._queue:
            request_id = self._queue[0].request_id
            shared: list[Sample] = []
            while self._queue and self._queue[0].request_id == request_id and len(shared) < len(self._free):
                shared.append(self._queue.popleft())
            self._free.sort()
            self._fills.append(Fill(shared, self._free[: len(shared)]))
            self._free = self._free[len(shared) :]

    def _prefill(self) -> list[Fill]:
        """Computes the next pieces of prompts and returns those that are ready."""
        config = self.config
        busy_budget = config.prefill_tokens or config.prefill_chunk
        budget = busy_budget if self._running else max(busy_budget, _IDLE_CHUNKS * config.prefill_chunk)
        most = min(config.prefill_chunk, self._pool.capacity)
        while budget > 0 and (waiting := [fill for fill in self._fills if not fill.ready]):
            chunk = prefilling.next_chunk(waiting, most=most, budget=budget, slots=config.slots, pad_id=self._pad_id)
            self._pool.compute(chunk)
            for fill, length in zip(chunk.fills, chunk.lengths.tolist(), strict=False):
                fill.started, fill.done = True, fill.done + length
            budget -= chunk.tokens.size
        ready = [fill for fill in self._fills if fill.ready]
        self._fills = [fill for fill in self._fills if not fill.ready]
        return ready

    def _start(self, ready: list[Fill]) -> None:
        """Lets the samples of finished prompts begin to decode."""
        if not ready:
            return
        self._pool.copy([(fill.slots[0], slot) for fill in ready for slot in fill.slots[1:]])
        setup = slots.empty_setup(self.config.slots, self._pool.vocabulary)
        chosen = np.zeros(self.config.slots, bool)
        for fill in ready:
            for slot, sample in zip(fill.slots, fill.samples, strict=True):
                sample.fill(setup, slot, vocab_size=self.vocab_size)
                if sample.request.sampling.repetition_penalty != 1:
                    self._pool.note_seen(slot, sample.request.prompt)
                chosen[slot] = True
                self._running[slot] = sample
        self._stopped &= ~chosen
        self._pool.activate(setup, chosen)

    def _decode(self) -> list[Event]:
        """Draws tokens for the running samples and frees the slots of those that ended."""
        waiting = bool(self._queue or self._fills)
        patience = max(1, len(self._running) // _PATIENCE) if waiting else self.config.slots + 1
        drawn = self._pool.decode(self._stopped, patience=patience, steps=self.config.decode_steps)
        self._stopped = np.zeros(self.config.slots, bool)
        counts, tokens, logprobs = jax.device_get((drawn.counts, drawn.tokens, drawn.logprobs))
        asked = any(sample.request.sampling.top_logprobs for sample in self._running.values())
        top = jax.device_get((drawn.top_ids, drawn.top_logprobs)) if asked else None
        events = []
        for slot, sample in list(self._running.items()):
            count = int(counts[slot])
            row_top = None if top is None else (top[0][slot, :count], top[1][slot, :count])
            events.append(sample.take(tokens[slot, :count].tolist(), logprobs[slot, :count], row_top))
            if sample.done:
                self._release(slot)
        return events

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._free.append(slot)
        self._stopped[slot] = True

    def _fit_pool(self) -> None:
        """Makes the pool's rows long enough for what this step writes."""
        steps = self.config.decode_steps
        held = itertools.chain(self._running.values(), (sample for fill in self._fills for sample in fill.samples))
        need = max(len(s.request.prompt) + len(s.tokens) - 1 + min(steps, s.remaining) for s in held)
        self._pool.fit(need, empty=not self._running and not any(fill.started for fill in self._fills))
