"""A destination that is complete or absent: written under a temporary name, renamed at the end, removed after a failure."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from lmx.convert.source import ConversionError, Target
from lmx.core import storage
from lmx.core.errors import DiskFullError


def local(path: epath.PathLike) -> Path:
    """The path, which must be local.

    Raises:
      ConversionError: it is remote.
    """
    if not storage.is_local(path):
        raise ConversionError(f"{os.fspath(path)} is remote; lmx converts and merges local checkpoints only, copy it first")
    return Path(storage.as_path(path))


def check_absent(final: Path) -> None:
    """Raises FileExistsError when something has that name, were it a link to nowhere."""
    if os.path.lexists(final):
        raise FileExistsError(f"{final} exists already; remove it, or choose another name")


def temporary_name(final: Path) -> Path:
    """Where this process builds what will be `final`."""
    return final.with_name(f".{final.name}.{os.getpid()}.partial")


def check_space(folder: Path, target: Target) -> None:
    """Raises DiskFullError when the disk of `folder`, which need not exist yet, has too little space for the target."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < target.size_bytes:
        raise DiskFullError(
            f"{folder} has {free / 1e9:.3g} GB left, but about {target.size_bytes / 1e9:.3g} GB are needed; free some space"
        )


@contextlib.contextmanager
def published(temporary: Path, final: Path, target: Target) -> Iterator[None]:
    """Renames what was written when the block ends, and removes it when the block fails."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
        if os.path.lexists(final):
            raise FileExistsError(f"{final} has come into being meanwhile; remove it, or choose another name")
        os.rename(temporary, final)
    except BaseException as error:
        target.abort()
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and storage.is_disk_full(error) and not isinstance(error, DiskFullError):
            raise DiskFullError(f"the disk is full: {final} could not be written; free some space") from error
        raise


def leftovers(final: Path, work: str = "conversion") -> tuple[str, ...]:
    """What killed work on the same name has left beside it."""
    found = sorted(final.parent.glob(f".{final.name}.*.partial")) if final.parent.exists() else []
    return tuple(f"{path} is what an interrupted {work} left; remove it unless that is still running" for path in found)
