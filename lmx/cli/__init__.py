"""The command line: parses, calls one package a verb, prints. Each verb imports what it needs, so that `--help` is quick.

A module a group of verbs; each has `add(verbs)`.
"""

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import lmx
from lmx.cli import conversion, curation, experiments, merging, models

_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")  # TPU, TPU, CUDA, ROCm, CUDA under WSL


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 1 (a run that can't go on), 2 (bad input), 130 (interrupted)."""
    own, options_of_beam = curation.split(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    options.options_of_beam = options_of_beam
    _choose_platform()
    try:
        options.verb(options)
    except KeyboardInterrupt:
        print("\nlmx: interrupted; give the same command again, without --from, to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error, debug=options.debug or bool(os.environ.get("LMX_DEBUG")))
    return 0


def _report(error: Exception, *, debug: bool) -> int:
    """Prints an error as one sentence if a user can act on it, else with its traceback."""
    from lmx.core import storage
    from lmx.core.errors import RunError

    sentence = str(error)
    if storage.is_disk_full(error) and not isinstance(error, RunError):
        sentence = f"the disk is full ({error}); free some space and give the same command again"
    elif not isinstance(error, ValueError | OSError | RunError):
        debug = True
    if debug:
        traceback.print_exception(error)
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("in stage ")]
    print("\n".join([f"lmx: {sentence}", *notes]), file=sys.stderr)
    return error.exit_code if isinstance(error, RunError) else 2 if isinstance(error, ValueError | OSError) else 1


def _choose_platform(devices: Path = Path("/dev")) -> None:
    """Keeps jax from looking for a TPU, at length and with warnings, where libtpu is installed but no accelerator is."""
    if "JAX_PLATFORMS" in os.environ or not sys.platform.startswith("linux") or importlib.util.find_spec("libtpu") is None:
        return
    if not any(next(devices.glob(pattern), None) for pattern in _ACCELERATORS):
        os.environ["JAX_PLATFORMS"] = "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmx", description="Train language models by experiments: Python files that define get_config(); then use them."
    )
    parser.add_argument("--version", action="version", version=f"lmx {lmx.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for group in (experiments, models, conversion, merging, curation):
        group.add(verbs)
    return parser
