"""Toy stages: pure Python, each writes one small text file and counts its runs beside it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Writes `text` into text.txt."""

    produces: ClassVar[str] = "dataset"
    text: str = "a"

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        (context.workdir / "text.txt").write_text(self.text)
        _count(context)
        return StageResult(tokens=len(self.text), metrics={"length": len(self.text)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A nested config that holds an input."""

    data: Ref | External = input_field("dataset", "files")
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """Joins the texts of its inputs, a part at a time; a file named `crash` in the workdir's parent stops it half way."""

    produces: ClassVar[str] = "report"
    sources: tuple[Source, ...]
    extra: Ref | External | None = input_field("report", default=None)
    separator: str = "+"
    limit: int = 100

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1")

    def check(self, upstream: Upstream) -> None:
        if len(upstream) > self.limit:
            raise ValueError(f"{len(upstream)} inputs exceed limit={self.limit}")

    def run(self, inputs: Inputs, context: StageContext) -> None:
        _count(context)
        for number, name in enumerate(sorted(inputs)):
            part = context.workdir / f"part{number}"
            if not part.exists():
                path = inputs[name].path
                part.write_text((path if path.is_file() else path / "text.txt").read_text())
            if (context.workdir.parent / "crash").exists():
                raise RuntimeError("the power went off")
        texts = [(context.workdir / f"part{number}").read_text() for number in range(len(inputs))]
        (context.workdir / "text.txt").write_text(f"{self.separator.join(texts)}, seed {context.seed}")


def _count(context: StageContext) -> None:
    with open(Path(context.workdir) / "runs", "a") as file:
        file.write("x")


@pytest.fixture
def toys() -> SimpleNamespace:
    """The toy stages, and `runs(folder)`, which says how often a stage has started there."""

    def runs(folder: Path) -> int:
        return len((folder / "runs").read_text()) if (folder / "runs").exists() else 0

    return SimpleNamespace(Words=Words, Source=Source, Join=Join, runs=runs)
