"""Files of a run: paths (local or gs://), atomic writes, JSON, JSON lines, and the lock on a working directory."""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from lmx.core.errors import LockedError

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def as_path(path: epath.PathLike) -> epath.Path:
    """The path as an absolute `epath.Path`, a leading `~` expanded; `gs://` and other remote paths stay as they are.

    Absolute because orbax takes no other, and because a run must not depend on the current folder once it has begun.
    """
    expanded = epath.Path(path).expanduser()
    return epath.Path(os.path.abspath(expanded)) if is_local(expanded) else expanded


def is_local(path: epath.PathLike) -> bool:
    """Whether a path lies on a file system of this machine, which has renames, appends and locks."""
    return "://" not in os.fspath(path)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that the disk or quota is full.

    Libraries that write in C++ (tensorstore under orbax) report it in the text of a ValueError only.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL_ERRNOS:
            return True
        if any(text in str(error) for text in _DISK_FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a whole file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(target):
        target.write_bytes(data)  # object stores publish an object only when it is complete
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically.

    A lone surrogate, which a model of bytes can produce and UTF-8 can't hold, becomes its escape, as JSON writes it.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON value atomically, indented, keys in the order given; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON, for instance because it was cut short.
    """
    source = as_path(path)
    if not source.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file", os.fspath(source))
    text = source.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} ({len(text)} bytes) is not valid JSON: {error}; it may have been cut short") from error


class JsonLines:
    """Appends records to a file of JSON lines; each line is handed to the operating system at once, so kill -9 loses none.

    Object stores cannot append: there the lines are kept in memory and the object is rewritten at each `flush`.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Opens (or creates) the file for appending."""
        self._path = as_path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = None
        self._remote_lines: list[bytes] = []
        if is_local(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        elif self._path.exists():
            self._remote_lines = [self._path.read_bytes()]

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; NaN and infinite numbers become null, and lone surrogates their escapes, which JSON can hold."""
        line = (json.dumps(finite(record), allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        if self._descriptor is None:
            self._remote_lines.append(line)
            return
        # Unbuffered on purpose: after a failed write nothing is left over that `close` would try to write again.
        while line:
            line = line[os.write(self._descriptor, line) :]

    def flush(self) -> None:
        """Makes what was appended durable: it survives a power failure too."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
        elif self._remote_lines:
            self._remote_lines = [b"".join(self._remote_lines)]
            self._path.write_bytes(self._remote_lines[0])

    def close(self) -> None:
        """Closes the file; a remote one is written first."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        else:
            self.flush()
        self._descriptor, self._remote_lines = None, []


def read_json_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without a last line that was only half written; none if there is no file.

    Raises:
      ValueError: a line before the last is not JSON.
    """
    return [json.loads(line) for line in _whole_lines(as_path(path))]


def cut_back(path: epath.PathLike, step: int) -> int:
    """Drops the records beyond a step, and a last line that was only half written, so that a resumed run can append.

    Args:
      path: file of JSON lines whose records carry an integer "step"; may be missing.
      step: the last step to keep; -1 empties the file.

    Returns:
      How many lines were dropped.

    Raises:
      ValueError: a line before the last is not JSON.
    """
    source = as_path(path)
    if not source.exists():
        return 0
    data = source.read_bytes()
    kept = [line for line in _whole_lines(source) if json.loads(line)["step"] <= step]
    text = b"".join(line + b"\n" for line in kept)
    if text != data:
        write_bytes(source, text)
    return len(data.splitlines()) - len(kept)


def finite(value: Any) -> Any:
    """The value with every NaN or infinite number replaced by None, in nested mappings and sequences too."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def lock(workdir: epath.PathLike, name: str = ".lock") -> Iterator[None]:
    """Holds the lock of a working directory, so that two runs do not write into it at the same time.

    The lock belongs to the open file and ends with the process, however it ends; a leftover file locks nothing.
    Remote directories have no locks and are not protected.

    Raises:
      LockedError: another process holds it; the message names the process and its machine.
    """
    directory = as_path(workdir)
    if not is_local(directory):
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    held = [descriptor]

    def drop_in_child() -> None:
        # A forked worker shares the open file and would keep the lock alive after its parent was killed.
        for inherited in held:
            os.close(inherited)
        held.clear()

    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{directory} is in use by {_holder(descriptor)}; wait for it, stop it, or choose another directory"
            ) from None
        os.register_at_fork(after_in_child=drop_in_child)
        os.truncate(descriptor, 0)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        if held:
            held.clear()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a fork that has not come to `drop_in_child` yet
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds a lock, in words, from the note in the lock's file."""
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError):  # the holder is just writing its note
        return "another process"


def _whole_lines(path: epath.Path) -> list[bytes]:
    """The lines of a JSON-lines file; the last one only if it is complete. Raises ValueError at a broken line in between."""
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    del rest  # what follows the last newline was only half written
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not valid JSON: {error}; repair or remove the line") from error
    return lines


def _sync_directory(directory: epath.Path) -> None:
    """Makes a rename in a local directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
