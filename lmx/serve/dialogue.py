"""POST /v1/chat/completions: messages, answered."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Send

from lmx.sampling.prompt import encode_messages
from lmx.sampling.request import Completion, Event, Request
from lmx.serve.answer import json_response, sse
from lmx.serve.error import bad_request
from lmx.serve.feed import Attended, News, send_events, subscribed
from lmx.serve.piece import chat_logprobs
from lmx.serve.schema import ChatCall, chat_call, check_model
from lmx.serve.service import Service, usage


@dataclasses.dataclass(frozen=True)
class _Job:
    """One call: the model, what was asked, and what the engine is asked."""

    service: Service
    call: ChatCall
    request: Request

    async def answer(self, send: Send) -> None:
        """The whole answer at once."""
        completions: dict[int, Completion] = {}
        async with subscribed(self.service.worker, [self.request]) as events:
            async for _, event in events:
                if event.completion is not None:
                    completions[event.sample] = event.completion
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": done.text or "", "refusal": None},
                "logprobs": self._logprobs(done),
                "finish_reason": done.finish_reason,
            }
            for index, done in sorted(completions.items())
        ]
        counts = usage([self.request.prompt], list(completions.values()))
        response = json_response(self.service.head("chatcmpl", "chat.completion") | {"choices": choices, "usage": counts})
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": False})

    async def stream(self, send: Send) -> None:
        """The answer as it comes."""
        async with subscribed(self.service.worker, [self.request]) as events:  # a refusal gets an ordinary answer
            await send_events(send, self._chunks(events))

    async def _chunks(self, events: AsyncIterator[News]) -> AsyncIterator[bytes]:
        draw = self.call.draw
        head = self.service.head("chatcmpl", "chat.completion.chunk") | ({"usage": None} if draw.include_usage else {})
        completions: list[Completion] = []
        for index in range(draw.n):
            yield sse(head | {"choices": [_choice(index, {"role": "assistant", "content": "", "refusal": None})]})
        async for _, event in events:
            if event.text or (draw.logprobs and event.tokens):
                yield sse(head | {"choices": [_choice(event.sample, {"content": event.text}, self._logprobs(event))]})
            if event.completion is not None:
                completions.append(event.completion)
                yield sse(head | {"choices": [_choice(event.sample, {}, None, event.completion.finish_reason)]})
        if draw.include_usage:
            yield sse(head | {"choices": [], "usage": usage([self.request.prompt], completions)})

    def _logprobs(self, news: Completion | Event) -> dict[str, Any] | None:
        if not self.call.draw.logprobs:
            return None
        return chat_logprobs(self.service.tokenizer, news.tokens, news.logprobs.tolist(), news.top_logprobs)


def prepare(service: Service, body: dict[str, Any]) -> Attended:
    """Reads and encodes a body; the response does the work.

    Raises:
      ApiError: 400 or 404.
    """
    call = chat_call(body)
    draw = call.draw
    check_model(draw.model, service.name)
    try:
        prompt = encode_messages(service.tokenizer, service.chat, call.messages, tools=call.tools)
    except ValueError as error:
        raise bad_request(str(error), "messages") from error
    room = max(service.max_length - len(prompt), 1)  # with no room at all the engine says so
    request = Request(prompt=prompt, sampling=draw.sampling(draw.max_tokens or room), seed=draw.seed, n=draw.n)
    job = _Job(service, call, request)
    return Attended(job.stream if draw.stream else job.answer)


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
