"""What cannot work is refused before anything runs, in one sentence with the numbers."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.models import tiny
from lmx.core import storage
from lmx.model.config import DecoderConfig, ScalarHead
from lmx.pipeline import graph
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import Ref, UpstreamInfo
from lmx.stages import training as stage_training
from lmx.stages.pairs import PairFormat

ANSWERERS = [("sft", "source"), ("pairs", "policy"), ("reward_model", "source"), ("dpo", "policy"), ("student", "teacher")]
CASES = [
    ("teacher.training.length", 65, "stage 'teacher': training.length=65 exceeds the model's max_length=64"),
    ("student.training.length", 65, "stage 'student': training.length=65 exceeds the model's max_length=64"),
    ("sft.training.length", 65, "stage 'sft': training.length=65 exceeds the model's max_length=64"),
    ("reward_model.training.length", 65, "stage 'reward_model': training.length=65 exceeds the model's max_length=64"),
    ("dpo.training.length", 65, "stage 'dpo': training.length=65 exceeds the model's max_length=64"),
    ("report.text.length", 65, "stage 'report': text.length=65 exceeds the model's max_length=64"),
    ("report.rewards.length", 65, "stage 'report': rewards.length=65 exceeds the model's max_length=64"),
    ("pairs.sampling.max_new_tokens", 64, "stage 'pairs': sampling.max_new_tokens=64 leaves no room for a prompt"),
    ("report.tasks.sampling.max_new_tokens", 64, "stage 'report': tasks.sampling.max_new_tokens=64 leaves no room for a prompt"),
    ("teacher.model.vocab_size", 200, "stage 'teacher': the tokenizer has 259 pieces but the model's vocab_size is 200"),
    ("student.student.vocab_size", 200, "stage 'student': the tokenizer has 259 pieces but the model's vocab_size is 200"),
    ("student.student.vocab_size", 300, "stage 'student': the teacher has vocab_size=264 and the student 300"),
    ("student.init", Ref("teacher"), "stage 'student': the model of `init` has another architecture than `student`"),
    ("teacher.model.head", ScalarHead(), "stage 'teacher': `model` has a scalar head; a language model is needed"),
    ("student.student.head", ScalarHead(), "stage 'student': `student` has a scalar head; a language model is needed"),
    ("dpo.policy", Ref("reward_model"), "stages.dpo.policy needs 'model', but the stage 'reward_model' produces 'reward_model'"),
    ("dpo.pairs", Ref("sft"), "stages.dpo.pairs needs 'dataset', but the stage 'sft' produces 'model'"),
    ("report.tasks.duels", (("dpo", "SFT"),), "stage 'report': tasks.duels names SFT, which is not judged; judged are dpo, sft"),
    (
        "report.text.comparisons",
        (("twin", "teacher", "it"),),
        "names twin, which is not judged; judged are student, teacher",
    ),
    ("report.text.models", (Ref("student"), Ref("student")), "stage 'report': text.models names 'student' twice"),
    ("sft.training.optimizer.schedule.warmup_steps", 3, r"stage 'sft': warmup_steps=3 must lie in 0\.\.2: the run has 3 steps"),
    ("sft.training.microbatches", 3, "batch_size=4 must be a multiple of microbatches=3"),
    ("sft.training.batch_size", 0, "batch_size=0 must be at least 1, length=64 at least 2"),
    ("sft.training.length", 1, "batch_size=4 must be at least 1, length=1 at least 2"),
    ("pairs.samples_per_prompt", 1, "samples_per_prompt=1 must be at least 2 and pairs_per_prompt=2 at least 1"),
    ("pairs.pairs_per_prompt", 0, "samples_per_prompt=2 must be at least 2 and pairs_per_prompt=0 at least 1"),
]


def replaced(config: Any, path: str, value: Any) -> Any:
    """The config with another value at a dotted path."""
    first, _, rest = path.partition(".")
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


def scalar_head() -> DecoderConfig:
    return dataclasses.replace(tiny.qwen2(264, max_length=64), head=ScalarHead())


def known(architecture: DecoderConfig | None, **info: Any) -> UpstreamInfo:
    return UpstreamInfo(**({"kind": "model", "architecture": architecture, "vocab_size": 259} | info))


def test_the_pipeline_itself_is_accepted(stages: dict[str, Any]) -> None:
    assert list(graph.resolve(Experiment(seed=0, stages=stages)).nodes) == list(stages)


@pytest.mark.parametrize(("path", "value", "message"), CASES, ids=[f"{path}={value}" for path, value, _ in CASES])
def test_what_cannot_work_is_refused_with_the_numbers(stages: dict[str, Any], path: str, value: Any, message: str) -> None:
    name, _, rest = path.partition(".")
    with pytest.raises(ValueError, match=message):
        graph.resolve(Experiment(seed=0, stages={**stages, name: replaced(stages[name], rest, value)}))


@pytest.mark.parametrize(("name", "field"), ANSWERERS)
def test_a_scalar_head_or_no_model_at_all_cannot_be_learned_from(stages: dict[str, Any], name: str, field: str) -> None:
    others = {"pairs": UpstreamInfo(kind="dataset")}
    with pytest.raises(ValueError, match=f"the input '{field}' has a scalar head; a language model is needed"):
        stages[name].check({field: known(scalar_head()), **others})
    with pytest.raises(ValueError, match=f"the input '{field}' is of the kind 'files' and holds no model"):
        stages[name].check({field: known(None, kind="files"), **others})


def test_a_teacher_or_a_reference_must_take_the_rows_too(stages: dict[str, Any]) -> None:
    short = known(tiny.qwen2(264, max_length=32))
    with pytest.raises(ValueError, match="training.length=64 exceeds the model's max_length=32"):
        stages["student"].check({"teacher": short})
    dpo = dataclasses.replace(stages["dpo"], reference=Ref("student"))
    with pytest.raises(ValueError, match="training.length=64 exceeds the model's max_length=32"):
        dpo.check({"policy": known(tiny.qwen2(264, max_length=64)), "reference": short})


def test_a_model_to_start_from_must_be_of_the_same_architecture(stages: dict[str, Any]) -> None:
    stage = dataclasses.replace(stages["teacher"], init=Ref("student"))
    tokenizer = UpstreamInfo(kind="tokenizer", vocab_size=259)
    stage.check({"tokenizer": tokenizer, "init": known(stage.model)})
    with pytest.raises(ValueError, match="the model of `init` has another architecture than `model`"):
        stage.check({"tokenizer": tokenizer, "init": known(tiny.qwen2(264, max_length=64))})


def test_models_that_are_compared_must_share_a_tokenizer() -> None:
    first, second = SimpleNamespace(fingerprint="1"), SimpleNamespace(fingerprint="2")
    stage_training.check_same_tokenizer({"policy": first, "reference": first})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the inputs 'policy' and 'reference' were made with different tokenizers"):
        stage_training.check_same_tokenizer({"policy": first, "reference": second})  # type: ignore[dict-item]


def test_a_dataset_without_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no preference pairs: train.jsonl is missing"):
        PairFormat().read(Artifact(storage.as_path(tmp_path)), "train")
