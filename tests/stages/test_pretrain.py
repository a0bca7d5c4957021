"""Pre-training in stages: ramps, mixtures, averages, and how one stage goes on from another."""

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

from configs.models import tiny
from lmx.data.mixture import MixPoint, MixSchedule
from lmx.data.ramp import Phase
from lmx.data.sources import HeldOut, JsonLines
from lmx.data.tasks import WORDS
from lmx.data.text import Component, PackedText
from lmx.merging import EMA, Uniform
from lmx.model.accounting import flops_per_token
from lmx.model.context import with_context
from lmx.optim import MuPSimple, Part, RMSProp, WarmupCosine
from lmx.pipeline import graph
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import Ref, StageContext, UpstreamInfo
from lmx.sharding.mesh import MeshConfig
from lmx.stages import Pretrain, Training
from lmx.train.averages import Checkpoints
from lmx.train.config import LoopConfig
from lmx.train.loop import Interrupted
from tests.fixtures import toy_run

VOCAB = 264
MODEL = tiny.afm(VOCAB, model_dim=32, num_layers=2, q_heads=2, kv_heads=1, head_dim=16, ffn_dim=32, max_length=64)
SCHEDULE = WarmupCosine(peak=0.01, warmup_steps=2, end_ratio=0.005)
RAMP = (Phase(from_tokens=128, batch_size=8, length=32),)
TRAINING = Training(
    loop=LoopConfig(steps=6, log_every=1, checkpoint_every=2),
    optimizer=RMSProp(schedule=Part(schedule=SCHEDULE, start=0, total=10), mup=MuPSimple(base_width=16)),
    batch_size=4,
    length=16,
    ramp=RAMP,
    average=Uniform(last=3),
    drop_norm=100.0,
)  # 2 and 4 steps


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


def source(folder: Path, name: str) -> HeldOut:
    generator, file = random.Random(name), folder / f"{name}.jsonl"
    texts = [" ".join(generator.choices(WORDS, k=30)) for _ in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return HeldOut(source=JsonLines(path=str(file)), one_in=5)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Pretrain:
    folder = tmp_path_factory.mktemp("text")
    components = tuple(Component(source=source(folder, name), name=name) for name in ("web", "code"))
    points = (MixPoint(from_tokens=0, weights={"web": 1}), MixPoint(from_tokens=256, weights={"web": 0.5, "code": 0.5}))
    data = PackedText(components=components, mix=MixSchedule(points=points))
    return Pretrain(model=MODEL, tokenizer=Ref("tokenizer"), data=data, training=TRAINING)


KNOWN = {"tokenizer": UpstreamInfo(kind="model", vocab_size=259)}


def context(folder: Path) -> StageContext:
    return StageContext(workdir=epath.Path(folder), name="web", seed=5)


def from_init(stage: Pretrain, init: Any, **changes: Any) -> None:
    known = {**KNOWN, "init": UpstreamInfo(kind="model", architecture=init, vocab_size=259)}
    dataclasses.replace(stage, init=Ref("before"), **changes).check(known)


def test_tokens_and_flops_are_counted_phase_by_phase(stage: Pretrain) -> None:
    work = stage.workload(KNOWN)
    assert (work.steps, work.tokens) == (6, 2 * 64 + 4 * 256)
    short, long = (flops_per_token(MODEL, length, training=True) for length in (16, 32))
    assert work.flops == pytest.approx(128 * short + 1024 * long, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ramp": (Phase(from_tokens=0, batch_size=4, length=16),)}, "the ramp goes backwards: the mark 0 follows 0"),
        ({"ramp": (Phase(from_tokens=100, batch_size=4, length=16),)}, "the nearest marks are 64 and 128"),
        (
            {"ramp": (Phase(from_tokens=384, batch_size=4, length=16),)},
            "loop.steps=6 ends after 384 tokens, before the ramp's mark of 384",
        ),
        ({"ramp": (Phase(from_tokens=128, batch_size=4, length=128),)}, "training.length=128 exceeds the model's max_length=64"),
        ({"average": Uniform(last=7)}, "average.last=7 is more than the run's 6 steps"),
        ({"average": Checkpoints(last=2)}, "need loop.keep_every"),
        (
            {"optimizer": RMSProp(schedule=Part(schedule=SCHEDULE, start=5, total=10))},
            "a stage of 6 steps from start=5 goes beyond the 10",
        ),
    ],
)
def test_what_a_run_cannot_do_is_refused_before_it_starts(stage: Pretrain, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(stage, training=dataclasses.replace(TRAINING, **changes)).check(KNOWN)
    stage.check(KNOWN)


def test_a_batch_that_the_mesh_cannot_hold_is_refused_by_the_graph(stage: Pretrain, stages: dict[str, Any]) -> None:
    experiment = Experiment(seed=0, stages={"tokenizer": stages["tokenizer"], "web": stage}, mesh=MeshConfig(data=4, fsdp=2))
    with pytest.raises(ValueError, match="stage 'web': a batch of 4 rows in 1 microbatches cannot be split over 8 devices"):
        graph.resolve(experiment)
    graph.resolve(dataclasses.replace(experiment, mesh=MeshConfig(data=4, tensor=-1)))


def test_a_ramp_needs_packed_text(stages: dict[str, Any]) -> None:
    sft = dataclasses.replace(stages["sft"], training=dataclasses.replace(stages["sft"].training, ramp=RAMP))
    with pytest.raises(ValueError, match="training.ramp changes the shape of packed text, which this stage doesn't read"):
        sft.check({"source": UpstreamInfo(kind="model", architecture=MODEL, vocab_size=259)})


def test_another_rope_base_at_the_start_of_a_stage_must_be_meant(stage: Pretrain) -> None:
    longer = with_context(MODEL, rope_theta=123.0, max_length=32)
    with pytest.raises(ValueError, match="differs from `model` in RoPE or max_length; set new_context=True if that is meant"):
        from_init(stage, longer)
    from_init(stage, longer, new_context=True)
    from_init(stage, MODEL)
    with pytest.raises(ValueError, match="has another architecture than `model`"):
        from_init(stage, tiny.afm(VOCAB, max_length=64), new_context=True)
    with pytest.raises(ValueError, match="say how to go on from `init`, which is None"):
        dataclasses.replace(stage, new_context=True).check(KNOWN)
    with pytest.raises(ValueError, match="keep_optimizer and an online training.average exclude each other"):
        from_init(stage, MODEL, keep_optimizer="all", training=dataclasses.replace(TRAINING, average=EMA(decay=0.9)))


def run(stage: Pretrain, folder: Path, inputs: dict[str, Artifact]) -> dict[str, float]:
    return dict(stage.run(inputs, context(folder)).metrics)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def whole(stage: Pretrain, language_model: Callable[[int], Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(stage, folder, {"tokenizer": language_model(0)})
    return folder


def test_a_stage_stopped_inside_its_ramp_leaves_the_same_model_bit_for_bit(
    stage: Pretrain, language_model: Callable[[int], Artifact], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Training.load

    def interrupted(*args: Any, **options: Any) -> Any:
        loader = taken(*args, **options)
        read = type(loader).__next__
        seen = []

        class Interrupting(type(loader)):  # type: ignore[misc]
            def __next__(self) -> Any:
                seen.append(0)
                if len(seen) == 4:
                    signal.raise_signal(signal.SIGTERM)
                return read(self)

        loader.__class__ = Interrupting
        return loader

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Training, "load", interrupted)
        run(stage, tmp_path, {"tokenizer": language_model(0)})
    run(stage, tmp_path, {"tokenizer": language_model(0)})
    assert records(tmp_path) == records(whole)
    assert [record["train/tokens"] for record in records(whole)] == [64, 128, 384, 640, 896, 1152]
    found, expected = (Artifact(epath.Path(folder)).load_params() for folder in (tmp_path, whole))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_next_stage_goes_on_with_rate_and_moments_where_the_last_one_stopped(
    stage: Pretrain, language_model: Callable[[int], Artifact], tmp_path: Path
) -> None:
    plain = dataclasses.replace(TRAINING, ramp=(), average=None, loop=dataclasses.replace(TRAINING.loop, steps=4))
    data = PackedText(components=stage.data.components)
    first = dataclasses.replace(stage, training=plain, data=data)
    inputs = {"tokenizer": language_model(0)}
    run(first, tmp_path / "first", inputs)
    rest = dataclasses.replace(
        plain, optimizer=RMSProp(schedule=Part(schedule=SCHEDULE, start=4, total=10), mup=MuPSimple(base_width=16))
    )
    theta = 2 * MODEL.layer_pattern[0].attention.rope.theta
    second = dataclasses.replace(
        first, init=Ref("first"), training=rest, keep_optimizer="all", new_context=True, model=with_context(MODEL, rope_theta=theta)
    )
    inputs["init"] = Artifact(epath.Path(tmp_path / "first"))
    run(second, tmp_path / "second", inputs)
    rates = [record["train/learning_rate"] for name in ("first", "second") for record in records(tmp_path / name)]
    np.testing.assert_allclose(rates, SCHEDULE.build(10)(np.arange(8)), rtol=1e-6)
    # AFM's momentum starts at a twentieth of its size; one that is kept does not fall back to it.
    moved: dict[str | None, float] = {}
    for keep, name in (("all", "second"), ("mean_squares", "squares"), (None, "fresh")):
        if name != "second":
            run(dataclasses.replace(second, keep_optimizer=keep), tmp_path / name, inputs)
        after, before = (
            Artifact(epath.Path(tmp_path / folder)).load_params()["blocks"]["0"]["ffn"]["up"]["kernel"]
            for folder in (name, "first")
        )
        moved[keep] = float(np.abs(after - before).mean())
    assert moved["all"] > 1.5 * moved["mean_squares"] and moved["mean_squares"] != moved[None]
    other = dataclasses.replace(second, training=dataclasses.replace(rest, average=EMA(decay=0.9)))
    with pytest.raises(ValueError, match="the optimizer's state can't be kept: .* is of another architecture"):
        run(other, tmp_path / "other", inputs)
