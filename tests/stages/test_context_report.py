"""What models make of their context: loss by position and needles, at each length that a model takes."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from lmx.data.recall import Facts
from lmx.data.sources import HeldOut, JsonLines
from lmx.data.tasks import WORDS
from lmx.data.text import Component, PackedText
from lmx.eval.needle import NeedleTest
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import Ref, StageContext, UpstreamInfo
from lmx.stages.context_report import FIGURES, ContextReport

NEEDLE = NeedleTest(facts=Facts(question="{key}=", answer="{value};", digits=1), samples=1, depths=(0.0, 1.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedText:
    generator, file = random.Random(0), tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = [" ".join(generator.choices(WORDS, k=20)) for _ in range(40)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return PackedText(components=(Component(source=HeldOut(source=JsonLines(path=str(file)), one_in=4)),))


def report(data: PackedText, **changes) -> ContextReport:
    return ContextReport(models=(Ref("first"), Ref("second")), data=data, **{"lengths": (32, 64, 128), "needle": NEEDLE, **changes})


def test_every_model_is_measured_at_the_lengths_that_it_takes(
    data: PackedText, language_model: Callable[[int], Artifact], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "context"
    folder.mkdir(parents=True)
    models = {"models.0": language_model(0), "models.1": language_model(1)}  # max_length 64
    result = report(data).run(models, StageContext(workdir=epath.Path(folder), name="context", seed=0))
    found = json.loads((folder / FIGURES).read_text())
    assert found == json.loads((folder.parent / FIGURES).read_text())
    assert len(found) == 2
    for rows in found.values():
        assert [row["length"] for row in rows] == [32, 64]
        assert [row["edges"] for row in rows] == [[0, 4, 8, 16, 32], [0, 8, 16, 32, 64]]
        assert all(4.0 < loss < 8.0 for row in rows for loss in row["loss"])  # an untrained model, ln(264) = 5.6
        assert all(0.0 <= row["needle"] <= 1.0 for row in rows)
    names = list(found)
    assert result.metrics[f"loss/{names[0]}/64"] == found[names[0]][1]["overall"]
    assert {f"last_half_loss/{name}/32" for name in names} | {f"needle/{name}/64" for name in names} <= result.metrics.keys()


def test_what_cannot_be_measured_is_refused_before_the_run(data: PackedText, language_model: Callable[[int], Artifact]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        report(data, lengths=())
    with pytest.raises(ValueError, match="rows of at least 64 tokens"):
        report(data, parts=6)
    artifact = language_model(0)
    upstream = {
        f"models.{i}": UpstreamInfo(kind="model", artifact=artifact, architecture=artifact.model_config()) for i in range(2)
    }
    report(data).check(upstream)
    with pytest.raises(ValueError, match=r"lengths=128 exceeds the model's max_length=64"):
        report(data, lengths=(128, 256)).check(upstream)
