"""POST /v1/completions: texts or token ids, continued."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Send

from lmx.sampling.prompt import encode_text
from lmx.sampling.request import Completion, Event, Request
from lmx.serve.answer import json_response, sse
from lmx.serve.error import bad_request
from lmx.serve.feed import Attended, News, called, send_events, subscribed
from lmx.serve.piece import TextOffsets, legacy_logprobs
from lmx.serve.schema import CompletionCall, Prompt, check_model, completion_call
from lmx.serve.service import Service, usage
from lmx.tokenizer.text import check_ids


@dataclasses.dataclass(frozen=True)
class _Echo:
    """A prompt as it is given back.

    Attributes:
      text: of the prompt, "" without echo.
      logprobs: the `logprobs` object of its tokens, None if not asked for.
    """

    text: str
    logprobs: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class _Job:
    """One call.

    Attributes:
      service: the model.
      call: what was asked.
      prompts: ids of each prompt.
      added: how many of them were put in front of it.
      requests: what the engine is asked, one a prompt; nothing if the prompts are only echoed.
    """

    service: Service
    call: CompletionCall
    prompts: list[list[int]]
    added: list[int]
    requests: list[Request]

    async def echoes(self) -> list[_Echo]:
        """The prompts, scored if log-probabilities are asked for."""
        call, tokenizer = self.call, self.service.tokenizer
        if not call.echo:
            return [_Echo("", None)] * len(self.prompts)
        texts = [item if isinstance(item, str) else tokenizer.decode(item) for item in call.prompts]
        if not call.draw.logprobs:
            return [_Echo(text, None) for text in texts]
        top = call.draw.options.get("top_logprobs", 0)
        pairs = [(ids[:1], ids[1:]) for ids in self.prompts]
        scores = await called(self.service.worker, lambda: self.service.score(pairs, top))
        return [
            _Echo(
                text, self._echoed(ids[added:], [None, *score.logprobs.tolist()][added:], [[], *(score.top_logprobs or [])][added:])
            )
            for text, ids, added, score in zip(texts, self.prompts, self.added, scores, strict=True)
        ]

    def _echoed(self, ids: list[int], logprobs: list[float | None], top: list[Any]) -> dict[str, Any]:
        asked = "top_logprobs" in self.call.draw.options
        offsets = TextOffsets(self.service.tokenizer).push(ids)
        return legacy_logprobs(self.service.tokenizer, ids, logprobs, top if asked else None, offsets)

    async def answer(self, send: Send) -> None:
        """The whole answer at once."""
        echoes, n = await self.echoes(), self.call.draw.n
        offsets = [TextOffsets(self.service.tokenizer, len(echoes[index // n].text)) for index in range(n * len(self.prompts))]
        completions: dict[int, Completion] = {}
        if self.requests:
            async with subscribed(self.service.worker, self.requests) as events:
                async for place, event in events:
                    if event.completion is not None:
                        completions[place * n + event.sample] = event.completion
        choices = []
        for index in range(n * len(self.prompts)):
            echo = echoes[index // n]
            done = completions.get(index)
            logprobs = joined(echo.logprobs, self._logprobs(done, offsets[index]) if done else None)
            choices.append(self._choice(index, echo.text + ((done.text or "") if done else ""), logprobs, done))
        body = self._head() | {"choices": choices, "usage": usage(self.prompts, list(completions.values()))}
        await _respond(send, body)

    async def stream(self, send: Send) -> None:
        """The answer as it comes."""
        echoes = await self.echoes()
        if self.requests:
            async with subscribed(self.service.worker, self.requests) as events:  # a refusal gets an ordinary answer
                await send_events(send, self._chunks(echoes, events))
        else:
            await send_events(send, self._chunks(echoes, None))

    async def _chunks(self, echoes: list[_Echo], events: AsyncIterator[News] | None) -> AsyncIterator[bytes]:
        head, draw = self._head() | ({"usage": None} if self.call.draw.include_usage else {}), self.call.draw
        offsets = [TextOffsets(self.service.tokenizer, len(echo.text)) for echo in echoes for _ in range(draw.n)]
        completions: list[Completion] = []
        for index in range(len(offsets) if self.call.echo else 0):
            echo = echoes[index // draw.n]
            choice = self._choice(index, echo.text, echo.logprobs, None)
            yield sse(head | {"choices": [choice | ({"finish_reason": None} if events is not None else {})]})
        if events is not None:
            async for place, event in events:
                index = place * draw.n + event.sample
                if event.completion is not None:
                    completions.append(event.completion)
                if event.text or event.completion is not None or (draw.logprobs and event.tokens):
                    logprobs = self._logprobs(event, offsets[index])
                    choice = self._choice(index, event.text, logprobs, event.completion)
                    yield sse(head | {"choices": [choice if event.completion else choice | {"finish_reason": None}]})
        if draw.include_usage:
            yield sse(head | {"choices": [], "usage": usage(self.prompts, completions)})

    def _head(self) -> dict[str, Any]:
        return self.service.head("cmpl", "text_completion")

    def _logprobs(self, news: Completion | Event, offsets: TextOffsets) -> dict[str, Any] | None:
        if not self.call.draw.logprobs:
            return None
        places = offsets.push(news.tokens)
        return legacy_logprobs(self.service.tokenizer, news.tokens, news.logprobs.tolist(), news.top_logprobs, places)

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, done: Completion | None) -> dict[str, Any]:
        # A prompt that is only echoed ends because max_tokens=0 does.
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": done.finish_reason if done else "length"}


def prepare(service: Service, body: dict[str, Any]) -> Attended:
    """Reads and encodes a body; the response does the work.

    Raises:
      ApiError: 400 or 404.
    """
    call = completion_call(body)
    check_model(call.draw.model, service.name)
    prompts, added = [], []
    for index, prompt in enumerate(call.prompts):
        where = f"prompt {index}: " if len(call.prompts) > 1 else ""
        ids, extra = _encode(service, prompt, where)
        prompts.append(ids)
        added.append(extra)
    draw, requests = call.draw, []
    if draw.max_tokens:
        sampling = draw.sampling(draw.max_tokens)
        requests = [Request(prompt=ids, sampling=sampling, seed=draw.seed, n=draw.n) for ids in prompts]
    job = _Job(service, call, prompts, added, requests)
    try:
        if call.echo:  # the engine sees them only if there is something to generate
            service.check_pairs([(ids[:1], ids[1:]) for ids in prompts])
            for ids in prompts:
                check_ids(ids, service.tokenizer.vocab_size)
    except ValueError as error:
        raise bad_request(str(error), "prompt") from error
    return Attended(job.stream if call.draw.stream else job.answer)


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `logprobs` of a prompt and of its completion as one."""
    if first is None or second is None:
        return first if second is None else second
    return {name: None if first[name] is None else first[name] + second[name] for name in first}


def _encode(service: Service, prompt: Prompt, where: str) -> tuple[list[int], int]:
    """A prompt's ids, and how many of them were put in front of it."""
    if not isinstance(prompt, str):
        if not prompt:
            raise bad_request(f"{where}the prompt holds no token; give it at least one", "prompt")
        return prompt, 0
    try:
        return encode_text(service.tokenizer, prompt), 0 if service.tokenizer.bos_id is None else 1
    except ValueError as error:
        raise bad_request(where + str(error), "prompt") from error


async def _respond(send: Send, body: dict[str, Any]) -> None:
    response = json_response(body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})
