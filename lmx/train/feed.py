"""Batches on their way to the device: read ahead by a thread, with the loader's position before and after each."""

import dataclasses
import json
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

import jax

from lmx.core.errors import RunError
from lmx.core.logging import logger
from lmx.core.types import PyTree
from lmx.sharding import place
from lmx.train.spec import TrainSpec

_STOP_SECONDS = 30


class Loader(Protocol):
    """An iterator of host batches, this process's rows of each; its state is JSON and gives exactly the next batch."""

    def __next__(self) -> PyTree:
        """The next batch: a pytree of numpy arrays, leading axis = rows."""

    def get_state(self) -> dict[str, Any]:
        """Where the loader stands."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where a loader with the same configuration stood."""


class DataExhaustedError(RunError):
    """The loader ended before the run did."""


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch on the device.

    Attributes:
      batch: pytree of global arrays, rows sharded over the batch axes of the mesh.
      before: JSON text of the loader's state that gives this batch next.
      after: JSON text of the loader's state that gives the following batch next.
    """

    batch: PyTree
    before: str
    after: str


def place_batch(spec: TrainSpec) -> Callable[[PyTree], PyTree]:
    """A function that puts this process's rows of a host batch into the global batch, sharded as the step expects it."""
    shardings = place.batch_shardings(spec.batch_spec, spec.mesh, spec.rules)

    def to_devices(batch: PyTree) -> PyTree:
        return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)

    return to_devices


class Feed:
    """Reads a loader ahead in a thread; an iterator of `Fed` and a context manager.

    The loader belongs to the thread until `close`. Its state is copied after each batch, so the position of a batch does not
    depend on how far the thread has read.
    """

    def __init__(self, loader: Loader, to_devices: Callable[[PyTree], PyTree], *, depth: int) -> None:
        """Starts to read.

        Args:
          loader: source of batches.
          to_devices: host batch -> batch on the device, for instance `place_batch(...)`.
          depth: how many batches may wait on the device, >= 1.
        """
        self.position = _position(loader)
        self._queue: queue.Queue[Fed | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(loader, to_devices, self.position), name="lmx-feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Fed:
        """The next batch; `position` then gives the one after it.

        Raises:
          StopIteration: the loader has ended.
        """
        item = self._failure or self._queue.get()
        if isinstance(item, BaseException):
            self._failure = item  # ask again, be told again: the thread has ended
            raise item
        self.position = item.after
        return item

    def close(self) -> None:
        """Stops the thread; batches read ahead are dropped."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            logger.warning("the data loader has been busy with one batch for %d s and is left behind", _STOP_SECONDS)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(self, loader: Loader, to_devices: Callable[[PyTree], PyTree], before: str) -> None:
        item: Fed | BaseException
        while not self._stop.is_set():
            try:
                batch = to_devices(next(loader))
                after = _position(loader)
                item = Fed(batch, before, after)
                before = after
            except BaseException as error:  # handed to the thread that trains
                item = error
            self._put(item)
            if isinstance(item, BaseException):
                return

    def _put(self, item: Fed | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue


def _position(loader: Loader) -> str:
    """The loader's state as JSON text: a copy that does not change when the loader moves on."""
    return json.dumps(loader.get_state())
