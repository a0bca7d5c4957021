"""A rerun skips what is finished, resumes what is not, and refuses what has changed."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lmx.core.errors import LockedError
from lmx.pipeline import artifact as artifacts
from lmx.pipeline import schedule
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.runner import run_experiment
from lmx.pipeline.stage import External, Inputs, Ref, StageContext
from lmx.sharding.mesh import MeshConfig


@pytest.fixture
def experiment(toys: SimpleNamespace) -> Experiment:
    """first, second -> join -> last."""
    join = toys.Join(sources=(toys.Source(data=Ref("first")), toys.Source(data=Ref("second"))))
    last = toys.Join(sources=(), extra=Ref("join"))
    return Experiment(
        seed=3, stages={"first": toys.Words(text="one"), "second": toys.Words(text="two"), "join": join, "last": last}
    )


def changed(experiment: Experiment, stage: str, **values: Any) -> Experiment:
    stages = dict(experiment.stages)
    stages[stage] = dataclasses.replace(stages[stage], **values)  # type: ignore[type-var]
    return dataclasses.replace(experiment, stages=stages)


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_each_stage_leaves_an_artifact_with_a_manifest(experiment: Experiment, tmp_path: Path) -> None:
    finished = run_experiment(experiment, tmp_path)
    assert list(finished) == ["first", "second", "join", "last"]
    seed = schedule.stage_seed(3, "join")
    assert (tmp_path / "join/text.txt").read_text() == f"one+two, seed {seed}"
    first, join = finished["first"].manifest, finished["join"].manifest
    assert first is not None and join is not None
    assert (first.status, first.kind, first.tokens, first.metrics) == ("finished", "dataset", 3, {"length": 3.0})
    assert join.inputs["sources.0.data"] == artifacts.InputRecord(source="stage first", fingerprint=first.fingerprint)
    assert join.seed == seed
    assert join.config["separator"] == "+"
    assert {"lmx", "jax", "python"} <= join.versions.keys()
    assert join.finished is not None and join.finished >= join.started


def test_the_resolved_config_is_written_before_the_first_stage(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    with pytest.raises(RuntimeError):
        run_experiment(experiment, tmp_path, only=None)
    assert "separator: '+'" in (tmp_path / "config.txt").read_text()


def test_a_rerun_changes_nothing(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    before = all_files(tmp_path)
    assert list(run_experiment(experiment, tmp_path)) == ["first", "second", "join", "last"]
    assert all_files(tmp_path) == before


def test_the_mesh_does_not_count(experiment: Experiment, tmp_path: Path, toys: SimpleNamespace) -> None:
    run_experiment(experiment, tmp_path)
    run_experiment(dataclasses.replace(experiment, mesh=MeshConfig(data=2)), tmp_path)
    assert toys.runs(tmp_path / "first") == 1


def test_an_interrupted_stage_goes_on_where_it_stopped(experiment: Experiment, tmp_path: Path, toys: SimpleNamespace) -> None:
    (tmp_path / "crash").touch()
    with pytest.raises(RuntimeError, match="the power went off") as caught:
        run_experiment(experiment, tmp_path)
    assert caught.value.__notes__ == [f"in stage 'join', {tmp_path / 'join'}"]
    assert artifacts.read_manifest(tmp_path / "join").status == "running"
    assert not (tmp_path / "last").exists()
    (tmp_path / "join/part0").write_text("kept")
    (tmp_path / "crash").unlink()
    run_experiment(experiment, tmp_path)
    assert (tmp_path / "join/text.txt").read_text().startswith("kept+two")
    assert [toys.runs(tmp_path / name) for name in ("first", "second", "join", "last")] == [1, 1, 2, 1]


def test_a_kill_before_the_first_manifest_leaves_nothing_in_the_way(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first/.manifest.json.1.tmp").write_text("{")
    assert "first" in run_experiment(experiment, tmp_path)


def test_a_changed_config_is_refused_with_a_diff_and_nothing_is_touched(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    before = all_files(tmp_path)
    with pytest.raises(ValueError) as caught:
        run_experiment(changed(experiment, "first", text="three"), tmp_path)
    message = str(caught.value)
    assert f"stage 'first' in {tmp_path / 'first'} was finished with another config:\n  text: 'one' -> 'three'\n" in message
    assert "--from first" in message and "first.old-N" in message
    assert all_files(tmp_path) == before


def test_an_unfinished_stage_with_another_config_is_refused_too(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    with pytest.raises(RuntimeError):
        run_experiment(experiment, tmp_path)
    with pytest.raises(ValueError, match="'join' in .* was begun with another config:\n  separator: '\\+' -> '-'"):
        run_experiment(changed(experiment, "join", separator="-"), tmp_path)


def test_another_seed_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    with pytest.raises(ValueError, match="seed"):
        run_experiment(dataclasses.replace(experiment, seed=4), tmp_path)


def test_a_changed_stage_behind_leaves_those_before_it_alone(experiment: Experiment, tmp_path: Path, toys: SimpleNamespace) -> None:
    run_experiment(experiment, tmp_path)
    run_experiment(changed(experiment, "join", separator="-"), tmp_path, from_="join")
    assert (tmp_path / "join/text.txt").read_text().startswith("one-two")
    assert (tmp_path / "last/text.txt").read_text().startswith("one-two")
    assert [toys.runs(tmp_path / name) for name in ("first", "second", "join", "last")] == [1, 1, 1, 1]


def test_from_keeps_the_old_results_aside(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    old = all_files(tmp_path / "join")
    run_experiment(experiment, tmp_path, from_="join")
    run_experiment(experiment, tmp_path, from_="join")
    assert all_files(tmp_path / "join.old-1") == old
    assert {path.name for path in tmp_path.iterdir() if ".old-" in path.name} == {
        "join.old-1",
        "join.old-2",
        "last.old-1",
        "last.old-2",
    }


def test_from_does_not_hide_a_change_further_up(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    with pytest.raises(ValueError, match="stage 'first'"):
        run_experiment(changed(experiment, "first", text="three"), tmp_path, from_="join")
    assert not list(tmp_path.glob("*.old-*"))


def test_a_stage_that_sees_an_input_made_anew_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    other = changed(experiment, "first", text="three")
    run_experiment(experiment, tmp_path)
    (tmp_path / "first").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="input sources.0.data: stage first \\("):
        run_experiment(other, tmp_path)


def test_only_runs_one_stage_and_asks_for_its_inputs(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="stage 'join' reads 'first', which is not finished in .*; run it first, with --only first"
    ):
        run_experiment(experiment, tmp_path, only="join")
    for name in ("first", "second", "join"):
        assert list(run_experiment(experiment, tmp_path, only=name)) == [name]
    assert not (tmp_path / "last").exists()


def test_only_ignores_changes_of_stages_that_it_does_not_need(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    assert list(run_experiment(changed(experiment, "last", separator="!"), tmp_path, only="join")) == ["join"]
    with pytest.raises(ValueError, match="give one of the two"):
        run_experiment(experiment, tmp_path, only="join", from_="first")
    with pytest.raises(ValueError, match="no stage 'jion'; did you mean 'join'"):
        run_experiment(experiment, tmp_path, only="jion")


def test_a_folder_that_no_run_wrote_is_left_alone(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="has files but no manifest.json"):
        run_experiment(experiment, tmp_path)
    assert (tmp_path / "first/thesis.txt").read_text() == "mine"


def test_a_damaged_manifest_is_named(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    manifest = tmp_path / "first/manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(ValueError, match="first/manifest.json is not a manifest"):
        run_experiment(experiment, tmp_path)


def test_a_changed_external_file_is_noticed(toys: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("x")
    experiment = Experiment(seed=0, stages={"join": toys.Join(sources=(toys.Source(data=External(str(file))),))})
    run_experiment(experiment, tmp_path / "w")
    run_experiment(experiment, tmp_path / "w")
    file.write_text("y")
    with pytest.raises(ValueError, match="input sources.0.data: .*text.txt"):
        run_experiment(experiment, tmp_path / "w")


@dataclasses.dataclass(frozen=True)
class OneFile:
    """A data source: what its file holds is no value of the config."""

    path: str

    def load(self, split: str) -> Any:
        return [Path(self.path).read_text()]

    def fingerprint(self) -> str:
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    produces: ClassVar[str] = "dataset"
    source: OneFile

    def run(self, inputs: Inputs, context: StageContext) -> None:
        (context.workdir / "text.txt").write_text(self.source.load("train")[0])


def test_changed_data_behind_the_same_config_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    experiment = Experiment(seed=0, stages={"reader": Reader(source=OneFile(str(file)))})
    with pytest.raises(FileNotFoundError):
        run_experiment(experiment, tmp_path / "w")
    file.write_text("x")
    manifest = run_experiment(experiment, tmp_path / "w")["reader"].manifest
    assert manifest is not None and manifest.inputs["source"].source == "data"
    file.write_text("y")
    with pytest.raises(ValueError, match="another config:\n  input source: data \\(.*\\) -> data"):
        run_experiment(experiment, tmp_path / "w")


def test_an_artifact_of_another_run_can_be_an_input(experiment: Experiment, toys: SimpleNamespace, tmp_path: Path) -> None:
    made = run_experiment(experiment, tmp_path / "a")["first"]
    other = Experiment(seed=0, stages={"join": toys.Join(sources=(toys.Source(data=External(str(tmp_path / "a/first"))),))})
    manifest = run_experiment(other, tmp_path / "b")["join"].manifest
    assert manifest is not None
    assert manifest.inputs["sources.0.data"].fingerprint == made.fingerprint()


def test_seeds_differ_by_stage_and_by_experiment() -> None:
    seeds = [schedule.stage_seed(seed, name) for seed in range(3) for name in ("a", "b")]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**31 for seed in seeds)


def test_the_manifest_is_plain_json(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path)
    data = json.loads((tmp_path / "join/manifest.json").read_text())
    assert data["config"]["sources"][0]["data"]["stage"] == "first"
    assert data["config"]["class"].endswith(".Join")


def test_two_runs_in_one_workdir_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    code = f"from lmx.core import storage\nwith storage.lock({str(tmp_path)!r}): print('held', flush=True), input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {other.pid}"):
            run_experiment(experiment, tmp_path)
        other.communicate("done\n")
    assert "last" in run_experiment(experiment, tmp_path)
