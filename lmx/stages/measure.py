"""The stage that tests a claim: it calls an experiment's own function, keeps its finished parts, and writes `result.json`."""

import dataclasses
import datetime
import importlib.metadata
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath

from lmx.core import serialize, storage
from lmx.core.logging import logger
from lmx.core.types import PyTree
from lmx.eval import claim_page
from lmx.eval.claims import Claim, Finding, Result
from lmx.pipeline.stage import Inputs, StageContext, StageResult


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a measurement gets.

    Attributes:
      seeds: of the runs, one a member of each arm.
      folder: the stage's own.
    """

    seeds: tuple[int, ...]
    folder: epath.Path

    def part(self, name: str, compute: Callable[[], PyTree]) -> PyTree:
        """The value of `compute()`: nested dicts (keys without "/") of arrays. It is kept, so that an interrupted run goes on."""
        path = self.folder / "parts" / f"{name}.npz"
        if path.exists():
            logger.info("%s: kept from an earlier run", name)
            return _read(path)
        logger.info("%s ...", name)
        begin = time.monotonic()
        tree = jax.device_get(compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(path, _packed(tree))
        logger.info("%s: %.0f s", name, time.monotonic() - begin)
        return tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Tests a claim and writes `result.json`.

    Attributes:
      claim: what is tested.
      by: the experiment: (bench) -> finding. Long pieces of it go through `bench.part`.
      seeds: of the runs.
    """

    produces: ClassVar[str] = "report"
    claim: Claim
    by: Callable[[Bench], Finding]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: a claim is tested with two different seeds or more")

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        del inputs
        begin = time.monotonic()
        finding = self.by(Bench(seeds=self.seeds, folder=context.workdir))
        result = Result(
            claim=self.claim,
            finding=finding,
            seeds=self.seeds,
            command=shlex.join(["lmx", *sys.argv[1:]]),
            commit=_commit(),
            seconds=round(time.monotonic() - begin, 1),
            machine=_machine(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        storage.write_json(context.workdir / claim_page.RESULT, serialize.to_json(result))
        for line in claim_page.verdict(result):
            logger.info("%s", line)
        return StageResult(metrics={"passed": float(finding.passed)})


def _packed(tree: PyTree) -> bytes:
    flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    buffer = io.BytesIO()
    np.savez(buffer, **flat)
    return buffer.getvalue()


def _read(path: epath.Path) -> PyTree:
    tree: dict[str, Any] = {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        for name in arrays.files:
            *parents, last = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = arrays[name]
    return tree


def _commit() -> str:
    """The commit of the code in the current folder, "+" behind it if files differ; "unknown" outside of a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _machine() -> str:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{os.cpu_count()} cores ({jax.default_backend()}), Python {python}, jax {importlib.metadata.version('jax')}"
