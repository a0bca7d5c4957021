"""One small run of everything: what each stage leaves, and that the parts fit together."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lmx
from lmx.eval.summary import read_summary
from lmx.model.config import ScalarHead
from lmx.pipeline.runner import run_experiment
from lmx.rewards.verify import exact_answer
from lmx.stages.pairs import PairFormat
from lmx.tokenizer.bytes import ByteTokenizer

TRAINED = ["teacher", "student", "sft", "reward_model", "dpo"]


def test_every_stage_leaves_a_finished_manifest_of_its_kind(finished: Any) -> None:
    kinds = {name: artifact.manifest.kind for name, artifact in finished.artifacts.items()}
    assert kinds == {
        "tokenizer": "tokenizer",
        "teacher": "model",
        "student": "model",
        "sft": "model",
        "pairs": "dataset",
        "reward_model": "reward_model",
        "dpo": "model",
        "report": "report",
    }
    assert {artifact.manifest.status for artifact in finished.artifacts.values()} == {"finished"}


def test_manifests_name_the_artifacts_and_data_that_were_read(finished: Any) -> None:
    inputs = {name: artifact.manifest.inputs for name, artifact in finished.artifacts.items()}
    assert {path: record.source for path, record in inputs["student"].items()} == {
        "teacher": "stage teacher",
        "data.components.0.source": "data",
    }
    assert inputs["dpo"]["policy"].fingerprint == finished.artifacts["sft"].manifest.fingerprint
    assert inputs["report"]["rewards.model"].source == "stage reward_model"


@pytest.mark.parametrize("stage", TRAINED)
def test_a_trained_stage_counts_its_tokens_and_logs_every_step(finished: Any, stage: str) -> None:
    manifest = finished.artifacts[stage].manifest
    rows = 4 * (2 if stage in ("reward_model", "dpo") else 1)
    assert 0 < manifest.tokens <= 3 * rows * 64
    losses = [record["train/loss"] for record in finished.records(stage) if "train/loss" in record]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert manifest.metrics["train/loss"] == pytest.approx(losses[-1]) and manifest.metrics["skipped"] == 0
    assert ("eval/loss" in manifest.metrics) == (stage not in ("student", "sft"))


@pytest.mark.parametrize("stage", TRAINED)
def test_load_opens_a_trained_stage(finished: Any, stage: str) -> None:
    loaded = lmx.load(finished.workdir / stage)
    assert jax.tree.map(np.shape, loaded.params) == jax.tree.map(lambda x: x.shape, loaded.model.abstract_params())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("né")) == "né"
    assert isinstance(loaded.model.config.head, ScalarHead) == (stage == "reward_model")


@pytest.mark.parametrize(("stage", "source"), [("sft", "student"), ("reward_model", "sft"), ("dpo", "sft")])
def test_fine_tuning_moves_the_parameters_a_little_from_their_source(finished: Any, stage: str, source: str) -> None:
    after, before = (lmx.load(finished.workdir / name).params["embed"]["table"] for name in (stage, source))
    assert 0 < float(np.abs(after - before).max()) < 0.1


def test_load_says_why_a_dataset_is_no_model(finished: Any) -> None:
    with pytest.raises(ValueError, match="holds no model: it is of the kind 'dataset'"):
        lmx.load(finished.workdir / "pairs")


def test_a_rerun_skips_everything(finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("manifest.json")}
    again = run_experiment(finished.experiment, finished.workdir)
    assert {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("manifest.json")} == before
    assert [artifact.fingerprint() for artifact in again.values()] == [
        artifact.fingerprint() for artifact in finished.artifacts.values()
    ]


def test_the_first_dpo_step_has_the_loss_of_a_policy_that_is_its_reference(finished: Any) -> None:
    first = finished.records("dpo")[0]
    assert first["step"] == 1
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["train/margin"] == pytest.approx(0, abs=1e-6) and first["train/accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_pairs_agree_with_the_verifier_and_can_be_read_back(finished: Any, split: str) -> None:
    artifact = finished.artifacts["pairs"]
    problems = finished.experiment.stages["pairs"].problems.load(split)
    rows = {row["prompt"]: row for row in (problems[index] for index in range(len(problems)))}
    pairs = [json.loads(line) for line in (artifact.path / f"{split}.jsonl").read_text().splitlines()]
    assert len(pairs) == artifact.manifest.metrics[f"{split}/pairs"] > 0
    for pair in pairs:
        row = rows[pair["prompt"]]
        assert exact_answer(row, pair["chosen"]) and not exact_answer(row, pair["rejected"])
    loader = PairFormat().read(artifact, split).loader(ByteTokenizer(), batch_size=4, length=64, seed=None, epochs=1)
    assert sum(int(batch.chosen.loss_mask.any(axis=1).sum()) for batch in loader) == len(pairs)


def test_summary_and_report_lie_in_the_experiments_own_folder(finished: Any) -> None:
    summary = read_summary(finished.workdir / "summary.json")
    assert [stage.name for stage in summary.stages] == list(finished.artifacts)[:-1]
    page = (finished.workdir / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "win rate" in page.lower()
    assert page == (finished.workdir / "report/report.html").read_text()


def test_the_summary_has_the_figures_of_the_stages(finished: Any) -> None:
    summary = read_summary(finished.workdir / "summary.json")
    stages = {stage.name: stage for stage in summary.stages}
    assert (stages["student"].kind, stages["student"].inputs, stages["student"].steps) == ("Distill", ("teacher",), 3)
    assert stages["student"].parameters == sum(x.size for x in jax.tree.leaves(lmx.load(finished.workdir / "student").params))
    assert stages["pairs"].parameters is None and stages["dpo"].inputs == ("sft", "pairs")
    assert stages["teacher"].tokens_per_second is not None and stages["teacher"].tokens_per_second > 0
    assert "Distill" in summary.config and {"jax", "lmx", "device"} <= summary.environment.keys()


def test_the_summary_judges_text_tasks_and_rewards(finished: Any) -> None:
    summary = read_summary(finished.workdir / "summary.json")
    assert summary.text is not None
    heldout = list(finished.experiment.stages["report"].text.heldout.texts("heldout"))
    assert (summary.text.documents, summary.text.text_bytes) == (len(heldout), sum(map(len, heldout)))
    bits = {entry.name: entry.value for entry in summary.text.entries}
    assert list(bits) == ["teacher", "student", "unigram", "order-2 Markov", "xz -9e"]
    assert all(0 < value < 10 for value in bits.values())
    (saving,) = summary.text.savings
    assert saving.saved.value == pytest.approx(bits["teacher"] - bits["student"])
    assert [accuracy.stage for accuracy in summary.accuracies] == ["sft", "dpo"]
    assert all(accuracy.overall.count == 8 and set(accuracy.tasks) == {"addition", "first_word"} for accuracy in summary.accuracies)
    (duel,) = summary.duels
    assert (duel.stage, duel.opponent, duel.wins + duel.ties + duel.losses) == ("dpo", "sft", 8)
    (reward,) = summary.rewards
    assert reward.accuracy.count == finished.artifacts["pairs"].manifest.metrics["heldout/pairs"]
    assert [len(sample.answers) for sample in summary.samples] == [2, 2, 2]


def test_the_tokenizer_goes_from_stage_to_stage(finished: Any) -> None:
    prints = {name: a.tokenizer().fingerprint for name, a in finished.artifacts.items() if a.has_tokenizer()}
    assert set(prints) == {"tokenizer", *TRAINED} and len(set(prints.values())) == 1


def test_nothing_but_hidden_files_is_left_beside_the_artifacts(finished: Any) -> None:
    left = {path.name for path in Path(finished.workdir).iterdir() if not path.name.startswith(".")}
    assert left == {*finished.artifacts, "config.txt", "summary.json", "report.html"}
