"""The header of a GGUF file read forwards: nothing is read, or made room for, that the file does not hold."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from lmx.convert.source import ConversionError

MAX_KEY_BYTES = 65_535  # the format's own limit


class Cursor:
    """A place in a binary file, moving forwards.

    Attributes:
      path: of the file, for messages.
      size: of the file, in bytes.
      position: of the next byte.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        """Starts at the beginning of an open file."""
        self.path, self.size, self.position = path, size, 0
        self._file = file

    def error(self, what: str) -> ConversionError:
        """An error about this file."""
        return ConversionError(f"{self.path}: {what}")

    def require(self, count: int, what: str) -> None:
        """Checks that `count` more bytes are there.

        Raises:
          ConversionError: the file ends before.
        """
        left = self.size - self.position
        if count > left:
            raise self.error(
                f"{what} at byte {self.position:,} takes {count:,} bytes but only {left:,} are left; it was cut short or damaged"
            )

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        self.require(count, what)
        data = self._file.read(count)
        if len(data) != count:
            raise self.error(f"{what} at byte {self.position:,} could not be read whole; the file is changing")
        self.position += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Passes over bytes."""
        self.require(count, what)
        self.position += count
        self._file.seek(self.position)

    def number(self, form: str, what: str) -> Any:
        """The next little-endian number; `form` is one character of `struct`."""
        form = "<" + form
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        """The next string: its length in 8 bytes, then UTF-8.

        Args:
          what: for messages.
          limit: longest that it may be, in bytes.
        """
        start, length = self.position, self.number("Q", f"the length of {what}")
        if limit is not None and length > limit:
            raise self.error(f"{what} at byte {start:,} claims {length:,} bytes, more than the {limit:,} that the format allows")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} at byte {start:,} is not valid UTF-8 ({error.reason})") from None

    def texts(self, count: int, what: str) -> None:
        """Passes over `count` strings, all of them checked."""
        read, size, position = self._file.read, self.size, self.position
        unpack = struct.Struct("<Q").unpack
        for index in range(count):
            head = read(8)
            length = unpack(head)[0] if len(head) == 8 else size
            if position + 8 + length > size:
                raise self.error(
                    f"item {index:,} of {what} at byte {position:,} does not fit into the file; it was cut short or damaged"
                )
            try:
                read(length).decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.error(f"item {index:,} of {what} at byte {position:,} is not valid UTF-8 ({error.reason})") from None
            position += 8 + length
        self.position = position
