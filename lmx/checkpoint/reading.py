"""Reading through orbax: whatever it cannot read is damage, told in one sentence and without the remains of its coroutines."""

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import jax

from lmx.checkpoint.record import DamagedError

# Errors that say nothing about the files: going back to an older checkpoint would hide them.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


def read(restore: Callable[[], Any], where: str, advice: str = "") -> Any:
    """The value of `restore()`.

    Args:
      restore: calls orbax.
      where: what is read, the subject of the sentence.
      advice: end of the sentence.

    Raises:
      DamagedError: orbax could not read it.
    """
    try:
        return restore()
    except _NOT_DAMAGE:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    # Outside the handler, so that the error and with it the frames of the failed read can go.
    _collect_abandoned_reads()
    raise DamagedError(f"{where} cannot be read, it was cut short or changed ({reason}){advice}")


def _collect_abandoned_reads() -> None:
    """Frees the coroutines that orbax left waiting beside the one that failed; each would print a traceback when it is freed."""
    former = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        if code is None or f"{os.sep}orbax{os.sep}" not in code.co_filename:
            former(unraisable)

    sys.unraisablehook = quiet
    try:
        gc.collect()
    finally:
        sys.unraisablehook = former
