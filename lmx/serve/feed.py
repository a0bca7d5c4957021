"""From the engine's thread to the event loop: the events of a request, and an end to it all when the client goes away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from lmx.sampling.request import Event, Request
from lmx.serve.answer import DONE, sse
from lmx.serve.error import ApiError, bad_request, busy
from lmx.serve.worker import EngineFailedError, FullError, StoppedError, Worker

Result = TypeVar("Result")
News = tuple[int, Event]


@contextlib.asynccontextmanager
async def subscribed(worker: Worker, requests: Sequence[Request]) -> AsyncIterator[AsyncIterator[News]]:
    """The events of requests, with each one's place among them; leaving the context cancels what has not ended.

    Raises:
      ApiError: on entry, they were not accepted; while iterating, they were ended from the other side.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

    def listen(place: int, news: Event | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(items.put_nowait, (place, news))

    try:
        ticket = worker.submit(requests, listen)
    except Exception as error:
        raise as_api_error(error) from error
    try:
        yield _events(items, sum(request.n for request in requests))
    finally:
        worker.cancel(ticket)


async def called(worker: Worker, function: Callable[[], Result]) -> Result:
    """What a function returns that runs in the engine's thread.

    Raises:
      ApiError: it was not accepted, or did not come to run.
    """
    try:
        return await asyncio.wrap_future(worker.call(function))
    except Exception as error:
        raise as_api_error(error) from error


def as_api_error(error: Exception) -> ApiError:
    """The answer to a request that the worker did not take, or did not finish; an error of another kind is raised again."""
    if isinstance(error, FullError):
        return busy(str(error))
    if isinstance(error, StoppedError):
        return ApiError(503, str(error))
    if isinstance(error, EngineFailedError):
        return ApiError(500, str(error))
    if isinstance(error, ValueError):
        return bad_request(str(error), code="context_length_exceeded" if "max_length" in str(error) else None)
    raise error


class Attended:
    """A response whose work ends as soon as the client is gone."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        """Answers by `work`, which sends all of the response."""
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Works until done or alone."""
        work = asyncio.ensure_future(self._work(send))
        watch = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)


async def send_events(send: Send, chunks: AsyncIterator[bytes]) -> None:
    """Sends a stream of server-sent events and its end; an error ends it with an event of its own, and without [DONE]."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": True})
    except ApiError as error:
        await send({"type": "http.response.body", "body": sse(error.body()), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(items: "asyncio.Queue[tuple[int, Event | Exception]]", samples: int) -> AsyncIterator[News]:
    while samples:
        place, news = await items.get()
        if isinstance(news, Exception):
            raise as_api_error(news)
        if news.completion is not None:
            samples -= 1
            if news.completion.finish_reason == "cancelled":
                raise ApiError(503, "the server has ended this request; send it again")
        yield place, news


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
