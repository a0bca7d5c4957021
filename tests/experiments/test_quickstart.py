"""The quickstart from the first stage to the report, and the notebook on what it leaves, with a few steps of small models."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import lmx
from lmx import cli
from lmx.eval.summary import read_summary

ROOT = Path(__file__).parents[2]
STAGES = ("tokenizer", "teacher", "student", "labels_only", "sft", "pairs", "reward_model", "dpo", "report")
TINY = {
    **{f"stages.{stage}.training.loop.steps": 4 for stage in ("teacher", "student", "labels_only", "sft", "reward_model", "dpo")},
    **{f"stages.{stage}.training.optimizer.schedule.warmup_steps": 1 for stage in STAGES[1:5] + STAGES[6:8]},
    **{f"stages.{stage}.training.loop.eval_batches": 1 for stage in STAGES[1:5] + STAGES[6:8]},
    "stages.teacher.model.num_layers": 2,
    "stages.student.student.num_layers": 2,
    "stages.labels_only.model.num_layers": 2,
    "stages.sft.data.source.count": 1000,
    "stages.pairs.use_answers": True,  # an untrained policy is never right
    "stages.pairs.problems.count": 40,
    "stages.pairs.problems.heldout_count": 40,
    "stages.report.tasks.problems.heldout_count": 40,
    "stages.report.text.heldout.components.0.source.max_bytes": 60_000,
    "stages.report.text.heldout.components.1.source.max_bytes": 60_000,
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def command(workdir: Path) -> list[str]:
    overrides = [word for path, value in TINY.items() for word in ("--set", f"{path}={value}")]
    return ["run", str(ROOT / "experiments" / "quickstart.py"), "--workdir", str(workdir), *overrides]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    assert cli.main(command(Path(os.path.relpath(folder)))) == 0  # a relative workdir, as in `make run`
    return folder


def test_every_stage_leaves_a_finished_artifact(workdir: Path) -> None:
    manifests = {stage: json.loads((workdir / stage / "manifest.json").read_text()) for stage in STAGES}
    assert {manifest["status"] for manifest in manifests.values()} == {"finished"}
    assert manifests["teacher"]["tokens"] == 4 * 8 * 256


def test_the_report_covers_every_model_and_baseline(workdir: Path) -> None:
    summary = read_summary(workdir / "summary.json")
    assert summary.text is not None
    names = [entry.name for entry in summary.text.entries]
    assert names == ["teacher", "student", "labels_only", "unigram", "order-2 Markov", "xz -9e"]
    assert all(0 < entry.value < 8 for entry in summary.text.entries)
    assert [accuracy.stage for accuracy in summary.accuracies] == ["student", "sft", "dpo"]
    assert [(duel.stage, duel.opponent) for duel in summary.duels] == [("dpo", "sft")]
    page = (workdir / "report.html").read_text()
    assert all(stage in page for stage in STAGES)


def test_a_second_run_does_nothing_and_changes_nothing(workdir: Path) -> None:
    before = (workdir / "summary.json").read_bytes(), (workdir / "report" / "manifest.json").read_bytes()
    assert cli.main(command(workdir)) == 0
    assert ((workdir / "summary.json").read_bytes(), (workdir / "report" / "manifest.json").read_bytes()) == before


def test_a_changed_finished_stage_is_refused_with_what_changed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command(workdir), "--set", "stages.dpo.loss.beta=0.3"]) == 2
    message = capsys.readouterr().err
    assert "beta" in message and "0.3" in message and "--from dpo" in message


def test_load_gives_the_models_with_their_tokenizer(workdir: Path) -> None:
    policy, reward_model = lmx.load(workdir / "dpo"), lmx.load(workdir / "reward_model")
    assert policy.tokenizer.vocab_size == policy.model.config.vocab_size == 2048
    assert reward_model.params["head"]["table"].shape == (1, policy.model.config.model_dim)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_run_from_top_to_bottom(workdir: Path, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"WORKDIR = {str(workdir)!r}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    images = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert images


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
