"""A whole pipeline, as small as one can be that has every part, and artifacts made without running anything.

The pipeline costs most of a minute, so it is run once, for the tests of one file: pytest-xdist gives a file to one worker.
"""

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from configs.models import tiny
from lmx.core import storage
from lmx.data.generated import GeneratedTasks
from lmx.data.sources import HeldOut, JsonLines
from lmx.data.supervised import Instructions
from lmx.data.tasks import WORDS, Addition, FirstWord
from lmx.data.text import Component, PackedText
from lmx.model.config import DecoderConfig
from lmx.model.decoder import build_model
from lmx.optim import AdamW, WarmupLinear
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.runner import run_experiment
from lmx.pipeline.stage import Ref
from lmx.sampling.generate import Sampling
from lmx.stages import (
    SFT,
    Bytes,
    Distill,
    Evaluate,
    Preference,
    Pretrain,
    RewardModel,
    SamplePairs,
    Training,
    TrainTokenizer,
)
from lmx.stages.evaluate import RewardEvaluation, TaskEvaluation, TextEvaluation
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.train.config import LoopConfig
from tests.fixtures import manifests

LENGTH, VOCAB = 64, 264  # the byte tokenizer has 259 pieces
SIZES = {"model_dim": 32, "num_layers": 2, "q_heads": 2, "kv_heads": 1, "head_dim": 16, "ffn_dim": 32, "max_length": LENGTH}
TASKS = (Addition(max_digits=1), FirstWord(max_words=2))


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: what was asked for, where it lies, and what it left."""

    experiment: Experiment
    workdir: Path
    artifacts: Mapping[str, Artifact]

    def records(self, stage: str) -> list[dict[str, Any]]:
        """The logged metrics of a stage."""
        return [json.loads(line) for line in (self.workdir / stage / "metrics.jsonl").read_text().splitlines()]


def training(*, steps: int = 3, rows: int = 4, peak: float = 1e-2, eval_every: int | None = 2) -> Training:
    return Training(
        loop=LoopConfig(steps=steps, log_every=1, eval_every=eval_every, eval_batches=2),
        optimizer=AdamW(schedule=WarmupLinear(peak=peak, warmup_steps=1)),
        batch_size=rows,
        length=LENGTH,
    )


def text_of(folder: Path) -> PackedText:
    """Eighty sentences of common words in a file; every fifth is held out."""
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(WORDS, k=generator.randint(3, 20))) + "." for _ in range(80)]
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences))
    return PackedText(components=(Component(source=HeldOut(source=JsonLines(path=str(file)), one_in=5)),))


def make_stages(folder: Path) -> dict[str, Any]:
    text = text_of(folder)
    problems = GeneratedTasks(tasks=TASKS, count=12, heldout_count=8, heldout_one_in=3)
    sampling = Sampling(max_new_tokens=4)
    stages: dict[str, Any] = dict(
        tokenizer=TrainTokenizer(data=text, vocabulary=Bytes()),
        teacher=Pretrain(model=tiny.llama3(VOCAB, **SIZES), tokenizer=Ref("tokenizer"), data=text, training=training()),
        student=Distill(student=tiny.qwen2(VOCAB, **SIZES), teacher=Ref("teacher"), data=text, training=training(eval_every=None)),
        sft=SFT(source=Ref("student"), data=Instructions(source=problems), training=training(eval_every=None)),
        pairs=SamplePairs(policy=Ref("sft"), problems=problems, sampling=sampling, samples_per_prompt=2),
        reward_model=RewardModel(source=Ref("sft"), pairs=Ref("pairs"), training=training()),
        dpo=Preference(policy=Ref("sft"), pairs=Ref("pairs"), training=training()),
    )
    stages["report"] = Evaluate(
        title="tiny",
        stages=tuple(Ref(name) for name in stages),
        text=TextEvaluation(
            models=(Ref("teacher"), Ref("student")),
            heldout=text,
            train=text,
            comparisons=(("student", "teacher", "Distillation"),),
            length=LENGTH,
        ),
        tasks=TaskEvaluation(
            policies=(Ref("sft"), Ref("dpo")), problems=problems, sampling=sampling, duels=(("dpo", "sft"),), num_samples=3
        ),
        rewards=RewardEvaluation(model=Ref("reward_model"), pairs=Ref("pairs"), length=LENGTH),
    )
    return stages


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The pipeline, run to its end. Tests may read it, and write elsewhere."""
    folder = tmp_path_factory.mktemp("pipeline")
    experiment = Experiment(name="tiny", seed=0, stages=make_stages(folder))
    return Finished(experiment, folder / "run", run_experiment(experiment, folder / "run"))


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Artifact]:
    """`language_model(seed)`: an artifact with the student's architecture and random parameters."""

    @functools.cache
    def write(seed: int) -> Artifact:
        folder = storage.as_path(tmp_path_factory.mktemp("model"))
        config: DecoderConfig = tiny.qwen2(VOCAB, **SIZES)
        params = jax.jit(build_model(config).init)(jax.random.key(seed))
        artifacts.write_model(folder, config=config, params=params, tokenizer=ByteTokenizer())
        return finish(folder, "model")

    return write


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact with eight preference pairs a split."""
    folder = storage.as_path(tmp_path_factory.mktemp("pairs"))
    for split in ("train", "heldout"):
        rows = [{"task": "addition", "prompt": f"{i}+1", "chosen": str(i + 1), "rejected": str(i)} for i in range(8)]
        storage.write_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return finish(folder, "dataset")


def finish(folder: epath.Path, kind: str) -> Artifact:
    """Adds the manifest that makes a folder an artifact."""
    manifest = manifests.finished(stage=folder.name, kind=kind, fingerprint=artifacts.digest(folder))
    artifacts.write_manifest(folder, manifest)
    return artifacts.open_finished(folder)


@pytest.fixture(scope="session")
def make_training() -> Callable[..., Training]:
    """`make_training(steps=..., rows=..., peak=..., eval_every=...)`."""
    return training


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The stages of the pipeline by name, to be varied; nothing has run."""
    return make_stages(tmp_path_factory.mktemp("stages"))
