"""The loop of a side of `tools/bench_data.py`: it does its whole job at each line from standard input and times it."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Worker:
    """One side, warmed up.

    Attributes:
      ready: what it says of itself before its first turn.
      turn: does the job once and returns what came of it.
    """

    ready: dict[str, Any]
    turn: Callable[[], dict[str, Any]]


def serve(build: Callable[[str, Path], Worker]) -> None:
    """Builds a side and answers each line with one line of JSON: the seconds of a turn, and what came of it.

    Args:
      build: (what to do, folder with the data) -> side.
    """
    parser = argparse.ArgumentParser(description="One side of tools/bench_data.py; started by it.")
    parser.add_argument("shape")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the libraries print is no answer
    worker = build(options.shape, options.folder)
    print(json.dumps(worker.ready), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        result = worker.turn()
        print(json.dumps({"seconds": time.perf_counter() - started, **result}), file=answers, flush=True)
