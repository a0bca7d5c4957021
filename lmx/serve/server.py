"""The HTTP server: a socket, uvicorn on it, and an end in order."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lmx.serve.worker import Worker

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn with a worker to stop: when it ends, running answers have `grace_seconds`, then their streams are closed."""

    def __init__(self, app: ASGIApp, worker: Worker, *, grace_seconds: float = 5.0) -> None:
        """Serves `app`; `worker` is stopped with it."""
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2 * worker.places + 64,  # connections; the application answers 429 well before
            timeout_graceful_shutdown=int(grace_seconds) + 5,
        )
        super().__init__(config)
        self._worker, self._grace_seconds = worker, grace_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes on nothing new, lets what runs end within the grace, and ends the rest."""
        self._worker.refuse()
        ending = asyncio.create_task(self._end_all())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends on SIGINT or SIGTERM without raising the signal once more: the caller still has things to put in order."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end; the second signal ends at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def _end_all(self) -> None:
        await asyncio.sleep(self._grace_seconds)
        await asyncio.to_thread(self._worker.stop)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 lets the system choose one.

    Raises:
      OSError: it can't be had; one sentence.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must lie in 0..65535 (0 = any free one)")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another --host or --port"
        ) from error


def url(sock: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, worker: Worker, sock: socket.socket, *, grace_seconds: float = 5.0) -> None:
    """Serves until SIGINT or SIGTERM, then ends in order; the worker has been started, and is stopped by the caller."""
    Server(app, worker, grace_seconds=grace_seconds).run(sockets=[sock])
