"""What the parents share: a side as a child process that answers requests, and counts on the command line."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Side:
    """A child process that works when it is asked to.

    Attributes:
      ready: what the child said of itself when it was ready.
    """

    def __init__(self, tool: str, module: str, shape: str, folder: str) -> None:
        """Starts the child and waits until it is ready; `tool` is the parent's name, for messages."""
        self.tool, self.name = tool, module
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", module, shape, folder]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self.ready = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """Sends a line and returns the answer."""
        print(request, file=self.process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """Closes the child's input, upon which it ends."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            sys.exit(f"{self.tool}: {self.name} ended with exit code {code}, its message stands above; `make bench` installs torch")
        return json.loads(line)


def positive(text: str) -> int:
    """A command line's count, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
