"""A mini recipe killed in the middle of its ramp and between two stages ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from lmx.pipeline.artifact import Artifact
from lmx.pipeline.runner import run_experiment
from tests.experiments.test_mini_recipes import llama31_recipe
from tests.fixtures import toy_run

# The ramp's second phase begins after step 2 and its third after step 7; a checkpoint is written after every second step.
LOOKS = 5
INSIDE_THE_RAMP, BETWEEN_STAGES = ("stage main", 5), ("stage lengthened, length 96", 0)
PROGRAM = """
import os, signal, sys
from lmx.train import loop
from tests.experiments.test_recipe_resume import run
from tests.fixtures import toy_run

advance, (workdir, cache, name, step) = loop._Loop._advance, sys.argv[1:]

def killing(self):
    if (self.name, self.step) == (name, int(step)):
        self.checkpointer.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self)

loop._Loop._advance = killing
with toy_run.compile_cache(cache):
    run(workdir)
"""


def run(workdir: str) -> None:
    """The whole recipe, from where it stands."""
    recipe, _ = llama31_recipe(looks=LOOKS)
    run_experiment(recipe.experiment("killed"), workdir)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


def killed(workdir: Path, cache: Path, point: tuple[str, int]) -> None:
    """Runs in another process until it kills itself before a step."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(cache), point[0], str(point[1])]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith("time")}


def left_by(workdir: Path, stage: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest's metrics and all lines of metrics of a stage, times aside."""
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(timeless, map(json.loads, lines)) if set(record) - {"step", "length"}]
    return timeless(json.loads((workdir / stage / "manifest.json").read_text())["metrics"]), records


def test_a_recipe_killed_in_its_ramp_and_between_stages_ends_the_same(tmp_path: Path, cache: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(str(whole))
    killed(broken, cache, INSIDE_THE_RAMP)
    assert sorted(path.name for path in (broken / "main" / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "4"]
    assert not (broken / "lengthened").exists()
    killed(broken, cache, BETWEEN_STAGES)
    assert json.loads((broken / "main" / "manifest.json").read_text())["status"] == "finished"
    run(str(broken))
    for stage in ("main", "lengthened", "annealed"):
        assert left_by(broken, stage) == left_by(whole, stage), stage
        found, expected = (Artifact(epath.Path(folder / stage)).load_params() for folder in (broken, whole))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
