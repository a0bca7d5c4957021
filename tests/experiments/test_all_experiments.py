"""Every file in experiments/: it loads, its stages fit together, every step has shapes, and its costs are the known ones.

The costs are compared with goldens/<name>.txt. After an intended change write them anew, look at the diff and commit it:

    LMX_UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/experiments
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmx.core.fingerprint import fingerprint
from lmx.pipeline import show
from lmx.pipeline.experiment import Experiment, load_experiment
from lmx.pipeline.graph import Graph, resolve
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.stages import table
from lmx.train.spec import TrainSpec
from lmx.train.state import abstract_state, frozen_shardings
from lmx.train.step import build_step

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
FILES = sorted(path for path in (ROOT / "experiments").rglob("*.py") if "ablations" not in path.parts)


def name_of(file: Path) -> str:
    return "-".join(file.relative_to(ROOT / "experiments").with_suffix("").parts)


@pytest.fixture(scope="module", params=FILES, ids=name_of)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def experiment(file: Path) -> Experiment:
    return load_experiment(file)


@pytest.fixture(scope="module")
def graph(experiment: Experiment) -> Graph:
    return resolve(experiment)


def test_there_are_experiments_and_every_golden_belongs_to_one() -> None:
    assert FILES
    assert {path.stem for path in GOLDENS.glob("*.txt")} <= {name_of(file) for file in FILES}


def test_the_docstring_says_how_to_launch_it(file: Path) -> None:
    assert f"lmx run {file.relative_to(ROOT)}" in file.read_text().split('"""')[1]


def test_every_value_can_be_written_down_and_fingerprinted(experiment: Experiment) -> None:
    assert fingerprint(experiment.stages) == fingerprint(experiment.stages)


def test_costs_are_the_known_ones(file: Path, experiment: Experiment, graph: Graph) -> None:
    lines = [f"{experiment.name}: {len(graph.nodes)} stages, seed {experiment.seed}", "", *show.graph_lines(graph), ""]
    if experiment.figures:  # a paper's recipe: what it does, and where each figure comes from
        lines += [*table.stage_table(graph, experiment.figures), ""]
    found = "\n".join(lines)
    golden = GOLDENS / f"{name_of(file)}.txt"
    if os.environ.get("LMX_UPDATE_GOLDENS"):
        golden.write_text(found)
    assert golden.exists(), f"{golden} is missing; see the top of this file for how to write it"
    assert found == golden.read_text(), "the costs have changed; see the top of this file for how to write the golden anew"


def test_every_training_step_keeps_the_shapes_of_its_state(graph: Graph) -> None:
    mesh = build_mesh(MeshConfig())
    specs = {name: node.stage.train_spec(node.upstream, mesh) for name, node in graph.nodes.items() if trains(node.stage)}
    assert specs
    for name, spec in specs.items():
        state = abstract_state(spec)
        after, metrics = jax.eval_shape(build_step(spec), state, abstract_frozen(spec), spec.batch_spec)
        assert shapes(after) == shapes(state), name
        assert {"loss", "grad_norm", "skipped", "tokens"} < metrics.keys(), name
        assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}, name
        assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype("float32")}, name


def trains(stage: Any) -> bool:
    return hasattr(stage, "train_spec")


def abstract_frozen(spec: TrainSpec) -> dict[str, Any]:
    """The frozen models' parameters as shapes, where the step expects them."""
    shardings = frozen_shardings(spec)
    return {
        name: jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            model.abstract_params(),
            shardings[name],
        )
        for name, model in spec.frozen_models.items()
    }


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
