"""The thread that owns the engine; requests come to it by a bounded queue, and events go back by callbacks."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from lmx.core.errors import RunError
from lmx.core.logging import logger
from lmx.sampling.engine import Engine
from lmx.sampling.request import Event, Request

Result = TypeVar("Result")
# Called in the engine's thread with the place of a request in its ticket and news of it, or with the error that ended them all.
Listener = Callable[[int, Event | Exception], None]


class FullError(RunError):
    """Too much is waiting already."""


class StoppedError(RunError):
    """The worker is ending, or has ended, and takes nothing on."""


class EngineFailedError(RunError):
    """The engine has broken; the worker can't go on."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """Requests that were accepted together.

    Attributes:
      requests: what is asked.
      listener: hears of them.
      open: samples that have not ended.
      ids: engine's id of each request -> its place.
    """

    requests: Sequence[Request]
    listener: Listener
    open: int
    ids: dict[int, int] = dataclasses.field(default_factory=dict)


class Worker:
    """Runs an engine in a thread of its own. All methods may be called from any thread.

    A sample that is asked for takes a place until it ends; there are as many places as the engine has slots, and `max_queue` more.
    """

    def __init__(self, engine: Engine, *, slots: int, max_queue: int) -> None:
        """Starts nothing yet.

        Args:
          engine: used by nobody else from now on, but for `check`.
          slots: how many rows it decodes together.
          max_queue: samples that may wait for a slot, at least 1.
        """
        if max_queue < 1:
            raise ValueError(f"max_queue={max_queue} must be at least 1: a request waits until the engine's next step")
        self.places = slots + max_queue
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._taken = 0
        self._tickets: set[Ticket] = set()
        self._calls: set[Future[Any]] = set()
        self._refusal: RunError | None = None
        self._by_id: dict[int, Ticket] = {}  # the engine's thread alone
        self._thread = threading.Thread(target=self._run, name="lmx engine", daemon=True)

    @property
    def taken(self) -> int:
        """Places in use."""
        return self._taken

    @property
    def refusal(self) -> RunError | None:
        """Why nothing is taken on any more, None while it is."""
        return self._refusal

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, requests: Sequence[Request], listener: Listener) -> Ticket:
        """Hands requests to the engine, all of them or none.

        Returns:
          A ticket to cancel them by.

        Raises:
          ValueError: one of them can't be served, or together they need more places than there are.
          FullError: there is no room for them now.
          StoppedError, EngineFailedError: the worker takes nothing on.
        """
        samples = sum(request.n for request in requests)
        if samples > self.places:
            raise ValueError(f"{samples} completions in one request are more than the {self.places} that this server holds at once")
        for request in requests:
            self._engine.check(request)
        ticket = Ticket(requests, listener, samples)
        self._take(samples, ticket)
        self._commands.put(lambda: self._begin(ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Frees what a ticket holds; a ticket that has ended is left alone."""
        self._commands.put(lambda: self._cancel(ticket))

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Runs a function in the engine's thread, between its steps; it takes one place until then. Raises as `submit` does."""
        future: Future[Result] = Future()
        self._take(1, future)

        def run() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(function())
            except Exception as error:  # it is the caller's, who gets it from the future
                future.set_exception(error)
            finally:
                self._release(1, future)

        self._commands.put(run)
        return future

    def refuse(self) -> None:
        """Takes nothing on from now; what has been accepted goes on."""
        with self._lock:
            self._refusal = self._refusal or StoppedError("the server is shutting down; try another, or again later")

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """Ends everything: listeners hear StoppedError, and the thread has ended when this returns (or is given up)."""
        self.refuse()
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    # ----- places

    def _take(self, count: int, holder: "Ticket | Future[Any]") -> None:
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if self._taken + count > self.places:
                raise FullError(f"the server is busy: {self._taken} of its {self.places} places are taken; try again later")
            self._taken += count
            if isinstance(holder, Ticket):
                self._tickets.add(holder)
            else:
                self._calls.add(holder)

    def _release(self, count: int, holder: "Ticket | Future[Any] | None") -> None:
        with self._lock:
            self._taken -= count
            if isinstance(holder, Ticket):
                self._tickets.discard(holder)
            elif holder is not None:
                self._calls.discard(holder)

    # ----- in the engine's thread

    def _run(self) -> None:
        try:
            while self._obey():
                for event in self._engine.step():
                    self._deliver(event)
        except Exception as error:  # whatever it is, those who wait must hear of it
            logger.exception("the engine failed")
            self._end(EngineFailedError(f"the engine failed ({type(error).__name__}); restart the server and see its log"))
        else:
            self._end(StoppedError("the server is shutting down; try another, or again later"))

    def _obey(self) -> bool:
        """Carries out what has been asked; waits for something if the engine is idle. False = stop."""
        block = not self._engine.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            block = not self._engine.busy

    def _begin(self, ticket: Ticket) -> None:
        for place, request in enumerate(ticket.requests):
            identity = self._engine.submit(request)
            ticket.ids[identity] = place
            self._by_id[identity] = ticket

    def _cancel(self, ticket: Ticket) -> None:
        for identity in ticket.ids:
            if identity in self._by_id:
                self._engine.cancel(identity)

    def _deliver(self, event: Event) -> None:
        ticket = self._by_id[event.request_id]
        place = ticket.ids[event.request_id]
        if event.completion is not None:
            ticket.open -= 1
            self._release(1, None if ticket.open else ticket)
            if not ticket.open:
                for identity in ticket.ids:
                    del self._by_id[identity]
        ticket.listener(place, event)

    def _end(self, reason: RunError) -> None:
        with self._lock:
            self._refusal = reason
            tickets, self._tickets = self._tickets, set()
            calls, self._calls = self._calls, set()
            self._taken -= sum(ticket.open for ticket in tickets) + len(calls)
        for ticket in tickets:
            ticket.listener(0, reason)
        for future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(reason)
