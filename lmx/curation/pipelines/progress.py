"""Where a running graph is, in lines on the console."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence

# The local runner tells the node that it begins with; the labels of our steps stand in the node's name, with "-" for brackets.
_RUNNER = "apache_beam.runners.portability.fn_api_runner.fn_runner"
_REPEATS = "apache_beam.runners.portability.local_job_service"  # says once more what worker processes have said
_BUNDLE = "Running bundle for stage"
_LABEL = re.compile(r"-(\d\d)-[A-Za-z]")
_SECONDS = 20.0  # between two signs of life


class _Stages(logging.Handler):
    """Hears which node the local runner begins with."""

    def __init__(self, reached: Callable[[int], None]) -> None:
        super().__init__(logging.DEBUG)
        self._reached = reached

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(_BUNDLE) and "Impulse_" not in message:  # those of constants come first, whatever step they belong to
            for place in sorted(map(int, _LABEL.findall(message.partition("\n")[0]))):
                self._reached(place)


class Progress:
    """Says which step is reached, and every now and then that the run is alive."""

    def __init__(self, names: Sequence[str], tell: Callable[[str], None]) -> None:
        """`names` are those of the steps by their places."""
        self._names, self._tell = names, tell
        self._furthest = -1
        self._started = self._last = time.monotonic()
        self._lock = threading.Lock()

    def reached(self, place: int) -> None:
        """A node of a step begins; only the furthest step is told."""
        with self._lock:
            if self._furthest < place < len(self._names):
                self._furthest = place
                self._say(f"step {place}/{len(self._names) - 1}: {self._names[place]}")

    def alive(self) -> None:
        """Says where the run is if nothing was said for a while."""
        with self._lock:
            if time.monotonic() - self._last >= _SECONDS:
                name = self._names[self._furthest] if self._furthest >= 0 else "starting"
                self._say(f"{name}: {time.monotonic() - self._started:.0f} s so far")

    def _say(self, message: str) -> None:
        self._last = time.monotonic()
        self._tell(message)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Listens to the local runner until the block ends."""
        logger, handler, ended = logging.getLogger(f"{_RUNNER}.run_bundle"), _Stages(self.reached), threading.Event()
        level, propagate = logger.level, logger.propagate
        repeats = logging.getLogger(_REPEATS)
        level_of_repeats = repeats.level
        repeats.setLevel(logging.ERROR)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
            repeats.setLevel(level_of_repeats)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            self.alive()
