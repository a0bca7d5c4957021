"""SIGTERM and SIGINT during training: noticed at the end of a step, so that the run can save and leave in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmx.core.errors import RunError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(RunError):
    """A signal ended the run in order: its state is saved and the message says how to go on.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, number: int) -> None:
        """Args: message: the sentence; number: the signal's."""
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """Whether a signal has asked the run to end.

    Attributes:
      number: of the signal that came, or None.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.number: int | None = None

    @property
    def name(self) -> str:
        """The signal's name, such as "SIGTERM"; "a signal" when it came to another process."""
        return signal.Signals(self.number).name if self.number is not None else "a signal"

    def agreed(self, *, may_wait: bool) -> bool:
        """Whether to stop now, the same answer on every process.

        Args:
          may_wait: whether this is a point where all processes meet anyhow (a log line). Several processes agree only there,
            so that none of them runs a step alone; a single process stops after any step.
        """
        if jax.process_count() == 1:
            return self.number is not None
        if not may_wait:
            return False
        numbers = np.asarray(multihost_utils.process_allgather(np.asarray(self.number or 0)))
        if self.number is None and numbers.any():
            self.number = int(numbers.max())
        return bool(numbers.any())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:  # asked twice: do not wait for the end of the step
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Installs the handlers and restores the former ones at the end; outside the main thread signals are left alone."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    former: dict[signal.Signals, Any] = {number: signal.signal(number, interruption._handle) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
