"""What a run tells: log lines on the console, and metrics to JSON lines, TensorBoard and a progress bar."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TextIO, TypeVar

from etils import epath
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2
from tqdm import tqdm

from lmx.core import storage

logger = logging.getLogger("lmx")
Item = TypeVar("Item")


def setup(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends lmx's log lines to the console, "12:34:56 message"; for programs, not for libraries. May be called twice."""
    for handler in [handler for handler in logger.handlers if isinstance(handler, _ConsoleHandler)]:
        logger.removeHandler(handler)
    handler = _ConsoleHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_ConsoleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    # Orbax logs the traceback of a failed save and raises it as well; the checkpointer turns the latter into a sentence.
    absl_logger = logging.getLogger("absl")
    for old in [item for item in absl_logger.filters if isinstance(item, _OrbaxFilter)]:
        absl_logger.removeFilter(old)
    absl_logger.addFilter(_OrbaxFilter())


class MetricWriter(Protocol):
    """Where metrics go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values of one step."""

    def flush(self) -> None:
        """Makes what was written durable."""

    def close(self) -> None:
        """Flushes and releases the file."""


class JsonLinesWriter:
    """One JSON object a call: {"step": 20, "train/loss": 2.5, ...}."""

    def __init__(self, path: epath.PathLike, *, resume_step: int = -1) -> None:
        """Opens the file after cutting it back to `resume_step`, the step that the run goes on from (-1: from the start)."""
        storage.cut_back(path, resume_step)
        self._lines = storage.JsonLines(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        self._lines.append({"step": step, **values})

    def flush(self) -> None:
        """Makes the lines durable."""
        self._lines.flush()

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


class TensorBoardWriter:
    """Scalars as TensorBoard events.

    Written in the calling thread: tensorboardX's own queue blocks for ever once its thread has died of a full disk.
    """

    def __init__(self, directory: epath.PathLike, *, resume_step: int = -1) -> None:
        """Opens a new event file; TensorBoard is told to forget what earlier files hold beyond `resume_step`."""
        path = storage.as_path(directory)
        path.mkdir(parents=True, exist_ok=True)
        # The file's name has a resolution of one second only; the suffix keeps a quick restart from overwriting it.
        suffix = f".{os.getpid()}.{time.time_ns() % 10**9}"
        self._events = event_file_writer.EventsWriter(os.fspath(path / "events"), filename_suffix=suffix)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
        self._events.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one event with all values."""
        scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=scalars))
        self._events.write_event(event)
        self._events.flush()

    def flush(self) -> None:
        """Does nothing: every write is flushed."""

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class ProgressWriter:
    """How far the run is: a bar when the stream is a terminal, else a log line for every call of `write`."""

    def __init__(self, *, name: str, total: int, initial: int = 0, stream: TextIO | None = None) -> None:
        """Shows the progress of `name` from step `initial` to step `total` on `stream` (default: standard error)."""
        stream = stream if stream is not None else sys.stderr
        self._name, self._total = name, total
        self._bar = None
        self._started: float | None = None
        self._first_step = initial
        if stream.isatty():
            bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(desc=name, total=total, initial=initial, file=stream, bar_format=bar_format, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Moves the bar; called every step, it draws at most ten times a second. The time left is reckoned from the first call."""
        if self._started is None:
            self._started, self._first_step = time.monotonic(), step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows loss, tokens/s and time left, or the held-out metrics."""
        shown = _summary(values)
        if self._bar is None:
            seconds = self._seconds_left(step) if "train/loss" in values and step < self._total else None
            left = f"  {_duration(seconds)} left" if seconds is not None else ""
            logger.info("%s: step %d/%d  %s%s", self._name, step, self._total, shown, left)
        elif "train/loss" in values:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            logger.info("%s: step %d/%d  %s", self._name, step, self._total, shown)

    def flush(self) -> None:
        """Draws the bar as it stands."""
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar on the screen and goes to the next line."""
        if self._bar is not None:
            self._bar.close()

    def _seconds_left(self, step: int) -> float | None:
        """None as long as no step has been timed: the first one compiles."""
        done = step - self._first_step
        if self._started is None or done <= 0:
            return None
        return (time.monotonic() - self._started) / done * (self._total - step)


def progress(items: Sequence[Item], *, description: str, stream: TextIO | None = None) -> Iterator[Item]:
    """The items, one by one, with a bar when the stream (default: standard error) is a terminal."""
    stream = stream if stream is not None else sys.stderr
    yield from tqdm(items, desc=description, file=stream, disable=not stream.isatty(), dynamic_ncols=True)


class Writers:
    """Several writers as one; a context manager."""

    def __init__(self, *writers: MetricWriter) -> None:
        """Writes to each of `writers`, in order; none at all on every process but the first."""
        self._writers = writers

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values of one step everywhere."""
        for writer in self._writers:
            writer.write(step, values)

    def flush(self) -> None:
        """Makes what was written durable."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _ConsoleFormatter(logging.Formatter):
    """Names the level of warnings and errors only."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{text[:8]} {record.levelname}:{text[8:]}"


class _ConsoleHandler(logging.StreamHandler):
    """Writes above a progress bar without tearing it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:  # as every logging handler: a broken console must not end a run
            self.handleError(record)


class _OrbaxFilter(logging.Filter):
    """Drops what orbax logs through absl."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def _summary(values: Mapping[str, float]) -> str:
    """The few numbers worth a line on the console."""
    held_out = {name: value for name, value in values.items() if name.startswith("eval/")}
    if held_out:
        return "  ".join(f"{name} {value:.4g}" for name, value in held_out.items())
    formats = {
        "train/loss": ("loss", "{:.4f}"),
        "train/grad_norm": ("grad norm", "{:.3g}"),
        "train/skipped": ("skipped", "{:.0f}"),
        "time/tokens_per_second": ("", "{:,.0f} tokens/s"),
        "time/mfu": ("MFU", "{:.1%}"),
    }
    quiet_when_zero = {"train/skipped"}
    return "  ".join(
        f"{label} {form.format(values[name])}".strip()
        for name, (label, form) in formats.items()
        if name in values and not (name in quiet_when_zero and values[name] == 0)
    )


def _duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min."""
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
