"""A file read by offset: never mapped, so that what was read does not count as memory, and never beyond its end unnoticed."""

import os
import stat
from pathlib import Path

import numpy as np

from lmx.convert.source import ConversionError

_AT_ONCE = 256 << 20


class OffsetReader:
    """An open file.

    Attributes:
      path: of the file.
      size: in bytes, when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens a regular file.

        Raises:
          FileNotFoundError: there is no such file.
          ConversionError: it is a directory, a pipe or a device.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not block
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ConversionError(f"{path} is not a regular file")

    def read(self, offset: int, count: int, what: str) -> bytes:
        """`count` bytes from an offset on; `what` they are, for the message.

        Raises:
          ConversionError: the file ends before.
        """
        if offset < 0 or offset + count > self.size:
            raise ConversionError(
                f"{self.path}: {what} ({count:,} bytes at byte {offset:,}) is not in the file of {self.size:,} bytes; "
                "it was cut short or damaged"
            )
        data = np.empty(count, np.uint8)
        self.read_into(data, offset, what)
        return data.tobytes()

    def read_into(self, out: np.ndarray, offset: int, what: str) -> None:
        """Fills a contiguous array with the bytes from an offset on.

        Raises:
          ConversionError: the file has become shorter than it was when opened.
        """
        view = out.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(self._descriptor, [view[:_AT_ONCE]], offset)
            if count == 0:
                raise ConversionError(f"{self.path} ended at byte {offset:,}, inside {what}: it was cut short since it was opened")
            view, offset = view[count:], offset + count

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
