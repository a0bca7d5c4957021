"""Lengthening behind gates: what opens them, what is written down, and that an interruption changes nothing."""

import dataclasses
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from lmx.core.errors import RunError
from lmx.data.recall import Facts
from lmx.data.sources import HeldOut, JsonLines
from lmx.data.tasks import WORDS
from lmx.data.text import Component, PackedText
from lmx.eval.needle import NeedleTest
from lmx.model.rope import critical_base
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import Ref, StageContext, UpstreamInfo
from lmx.stages import lengthen as stage_module
from lmx.stages.lengthen import GATES, Lengthen, LengthGate
from lmx.train.loop import Interrupted
from tests.fixtures import toy_run

FACTS = Facts(question="{key}=", answer="{value};", digits=1)
GATE = LengthGate(
    short_length=32,
    short_tolerance=9.0,
    short_batches=1,
    needle=NeedleTest(facts=FACTS, samples=1, depths=(0.0,)),
    accuracy=0.0,
    every=2,
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedText:
    generator, file = random.Random(0), tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = [" ".join(generator.choices(WORDS, k=40)) for _ in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return PackedText(components=(Component(source=HeldOut(source=JsonLines(path=str(file)), one_in=5)),))


@pytest.fixture(scope="module")
def stage(data: PackedText, make_training: Callable[..., Any]) -> Lengthen:
    training = dataclasses.replace(make_training(steps=4, rows=6, eval_every=None), length=64)
    theta = critical_base(1e4, trained_length=64, target_length=128)
    return Lengthen(source=Ref("base"), data=data, lengths=(96, 128), training=training, gate=GATE, rope_theta=theta)


def context(folder: Path) -> StageContext:
    return StageContext(workdir=epath.Path(folder), name="long", seed=5)


def test_both_conditions_must_hold_for_a_gate_to_open() -> None:
    gate = dataclasses.replace(GATE, short_tolerance=0.01, accuracy=0.9)
    stream = [(2.02, 1.0), (2.005, 0.5), (float("nan"), 1.0), (2.02, 0.5), (2.005, 0.9), (1.5, 1.0)]
    opened = [gate.opens(short_loss=loss, before=2.0, accuracy=accuracy) for loss, accuracy in stream]
    assert opened == [False, False, False, False, True, True]
    assert gate.lacks(short_loss=2.02, before=2.0, accuracy=0.5) == (
        "the short-context loss is 2.0200 where 2.0100 is needed and 0.500 of the needles are found where 0.900 is needed"
    )


@pytest.fixture(scope="module")
def finished(stage: Lengthen, language_model: Callable[[int], Artifact], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lengthened")
    return folder, stage.run({"source": language_model(0)}, context(folder))


def test_every_length_is_trained_until_its_gate_opens_and_the_looks_are_written_down(stage: Lengthen, finished: Any) -> None:
    folder, result = finished
    gates = json.loads((folder / GATES).read_text())
    assert [(g["length"], g["steps"], g["tokens"], g["opened"]) for g in gates["lengths"]] == [
        (96, 2, 2 * 4 * 96, True),
        (128, 2, 2 * 3 * 128, True),
    ]
    assert all(list(look) == ["step", "short_loss", "needle", "opens"] for g in gates["lengths"] for look in g["looks"])
    assert result.tokens == 2 * (4 * 96 + 3 * 128)
    assert result.metrics["length_128/opened"] == 1.0 and result.metrics["short_loss_before"] == gates["short_loss_before"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["length"], r["step"]) for r in records if "train/loss" in r] == [(96, 1), (96, 2), (128, 3), (128, 4)]


def test_the_new_base_and_length_are_in_the_model_and_nothing_else_is(
    stage: Lengthen, finished: Any, language_model: Callable[[int], Artifact]
) -> None:
    config, source = Artifact(epath.Path(finished[0])).model_config(), language_model(0).model_config()
    assert config.max_length == 128
    assert {block.attention.rope.theta for block in config.layer_pattern} == {stage.rope_theta}
    assert jax.tree.map(np.shape, Artifact(epath.Path(finished[0])).load_params()) == jax.tree.map(
        np.shape, language_model(0).load_params()
    )
    assert config.layer_pattern[0].ffn == source.layer_pattern[0].ffn


def test_a_run_that_is_stopped_inside_a_length_ends_the_same(
    stage: Lengthen, finished: Any, language_model: Callable[[int], Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    needles = stage_module.find_needles

    def interrupt(*args: Any, **options: Any) -> Any:
        calls.append(options["length"])
        if calls == [96, 128]:
            signal.raise_signal(signal.SIGTERM)
        return needles(*args, **options)

    monkeypatch.setattr(stage_module, "find_needles", interrupt)
    inputs = {"source": language_model(0)}
    with pytest.raises(Interrupted):
        stage.run(inputs, context(tmp_path))
    result = stage.run(inputs, context(tmp_path))
    assert calls == [96, 128]  # an open gate is not asked again
    assert dict(result.metrics) == dict(finished[1].metrics)
    for name in (GATES,):
        assert (tmp_path / name).read_text() == (finished[0] / name).read_text()
    found, expected = (Artifact(epath.Path(folder)).load_params() for folder in (tmp_path, finished[0]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("when_shut", ["stop", "continue"])
def test_a_gate_that_never_opens_is_bounded_and_explained(
    stage: Lengthen, language_model: Callable[[int], Artifact], tmp_path: Path, when_shut: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shut = dataclasses.replace(
        stage, gate=dataclasses.replace(GATE, accuracy=1.0, short_tolerance=0.0), when_shut=when_shut, lengths=(96,)
    )
    sentence = r"the gate of length 96 stayed shut for all of 4 steps \(1536 tokens\): .*0.000 of the needles are found where 1.000"
    if when_shut == "stop":
        with pytest.raises(RunError, match=sentence + ".*; raise training.loop.steps, ask for less"):
            shut.run({"source": language_model(0)}, context(tmp_path))
        assert [look["step"] for look in json.loads((tmp_path / GATES).read_text())["lengths"][0]["looks"]] == [2, 4]
    else:
        with caplog.at_level("WARNING", logger="lmx"):
            result = shut.run({"source": language_model(0)}, context(tmp_path))
        assert result.metrics["length_96/opened"] == 0.0 and "going on, as when_shut='continue' says" in caplog.text


def test_costs_are_counted_length_by_length(stage: Lengthen, language_model: Callable[[int], Artifact]) -> None:
    info = UpstreamInfo(kind="model", architecture=language_model(0).model_config(), vocab_size=259)
    work = stage.workload({"source": info})
    assert (work.steps, work.tokens) == (8, 4 * 4 * 96 + 4 * 3 * 128)
    stage.check({"source": info})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, r"lengths=\(\) must be at least one length"),
        ({"lengths": (128, 96)}, r"lengths=\(128, 96\) must be at least one length, each greater"),
        ({"lengths": (16, 96)}, "gate.short_length=32 must not exceed the first length, 16"),
    ],
)
def test_impossible_lengths_are_refused(stage: Lengthen, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(stage, **changes)


def test_a_row_longer_than_a_batch_is_refused(stage: Lengthen, language_model: Callable[[int], Artifact]) -> None:
    info = UpstreamInfo(kind="model", architecture=language_model(0).model_config(), vocab_size=259)
    with pytest.raises(ValueError, match="a batch of 6 x 64 tokens holds no row of 512; raise training.batch_size"):
        dataclasses.replace(stage, lengths=(512,)).check({"source": info})
