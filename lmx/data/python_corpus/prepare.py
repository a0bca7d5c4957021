"""Preparing the corpus once per machine and Python, and reading it."""

import contextlib
import fcntl
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from lmx.data.python_corpus import python_corpus_dataset_builder as builders


def default_cache() -> Path:
    """Where prepared data lies unless the config names another place: `~/.cache/lmx`."""
    return Path.home() / ".cache" / "lmx"


def open_split(kind: str, split: str, *, packages: tuple[str, ...] = (), cache: Path | None = None) -> Sequence[dict[str, Any]]:
    """Random-access rows {"text", "kind", "name"} (bytes) of one split, prepared first if need be.

    Args:
      kind: "prose" or "code".
      split: "train" or "heldout".
      packages: installed packages beside the standard library.
      cache: directory of the prepared data, None = `default_cache()`.
    """
    directory = cache or default_cache()
    config = builders.corpus_config(kind, packages)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / f"python_corpus-{config.name}.lock"), quiet():
            builder = builders.Builder(config=config, data_dir=directory)
            for leftover in Path(builder.data_dir).parent.glob("incomplete.*"):  # of a preparation that was killed
                shutil.rmtree(leftover)
            builder.download_and_prepare(
                file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"the Python corpus cannot be prepared in {directory}: {error}; name another directory in `cache`"
        ) from error
    rows: Sequence[dict[str, Any]] = builder.as_data_source(split)
    return rows


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file until the block ends; waits for whoever holds it. It ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what TFDS prints: it announces downloads, of which there are none, and warns of every config made at run time."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
