"""Files of a curation through Beam's filesystems: a local path, gs://, s3://, hdfs:// and what else the workers know."""

import functools
import os
import uuid
from collections.abc import Sequence

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems


def is_local(path: str) -> bool:
    """Whether a path lies on a filesystem of this machine."""
    return "://" not in path


def absolute(path: str | os.PathLike[str]) -> str:
    """The path without `~`, and absolute when local: workers have another current folder."""
    text = os.fspath(path)
    return os.path.abspath(os.path.expanduser(text)) if is_local(text) else text.rstrip("/")


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return FileSystems.join(folder, *names)


def matching(pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of the files that match, sorted.

    Raises:
      ValueError: none does, or the place can't be read.
    """
    try:
        [found] = FileSystems.match([absolute(pattern)])
    except (BeamIOError, ValueError) as error:
        raise ValueError(f"{pattern!r} cannot be looked up: {error}") from error
    files = sorted((item.path, item.size_in_bytes) for item in found.metadata_list if not os.path.isdir(item.path))
    if not files:
        raise ValueError(f"no file matches {pattern!r} (working directory {os.getcwd()})")
    return files


def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    return os.path.exists(path) if is_local(path) else FileSystems.exists(path)


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
      ValueError: it is missing or can't be read.
    """
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            data: bytes = file.read()
            return data
    except (BeamIOError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file under another name and renames it, so that a bundle that is tried twice leaves one whole file."""
    folder, name = FileSystems.split(path)
    make_folder(folder)
    temporary = join(folder, f".{name}.{uuid.uuid4().hex}")
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(data)
    replace(temporary, path)


def replace(source: str, target: str) -> None:
    """Renames a file; one that has the name already is replaced."""
    if is_local(source) and is_local(target):
        os.replace(source, target)
        return
    if FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([source], [target])


def make_folder(folder: str) -> None:
    """Has the folder on filesystems that know folders."""
    if is_local(folder):
        os.makedirs(folder, exist_ok=True)


def remove(path: str) -> None:
    """Deletes a file, or a folder with all that is in it, if it exists."""
    if exists(path):
        FileSystems.delete([path])
    elif not is_local(path) and _below(path):
        FileSystems.delete([path + "/"])


def clear(folder: str, keep: str) -> None:
    """Empties a folder, but for one name in it; on a filesystem that knows folders it is there afterwards."""
    if not is_local(folder):
        remove(folder)
        return
    make_folder(folder)
    FileSystems.delete([join(folder, name) for name in os.listdir(folder) if name != keep])


def publish(temporary: str, final: str, last: Sequence[str]) -> None:
    """Gives a complete folder its name.

    A local folder is renamed at once. On an object store its files move one by one, and the files `last` after all others: where
    they are, the folder is complete.
    """
    if is_local(temporary):
        os.replace(temporary, final)
        return
    names = [path[len(temporary) :].lstrip("/") for path in _below(temporary)]
    for name in [*sorted(set(names) - set(last)), *last]:
        replace(join(temporary, name), join(final, name))


def _below(folder: str) -> list[str]:
    [found] = FileSystems.match([join(folder, "**")])
    return [item.path for item in found.metadata_list]


@functools.lru_cache(maxsize=8)
def cached_bytes(path: str) -> bytes:
    """A whole file, kept for the other bundles of this process."""
    return read_bytes(path)
