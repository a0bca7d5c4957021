"""The persistent compile cache: a program compiled once is read back by the next process."""

import jax
from etils import epath

from lmx.core import storage


def enable_compile_cache(path: epath.PathLike = "~/.cache/lmx/xla") -> None:
    """Keeps compiled programs that took longer than half a second under `path`.

    An entry that a killed process left half written is noticed by jax, which warns and compiles anew.
    """
    directory = storage.as_path(path)
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
