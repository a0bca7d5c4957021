"""Experiment files are found, imported from anywhere, overridden and varied."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmx.core.fingerprint import fingerprint
from lmx.pipeline.experiment import load_experiment, load_variants

FILE = """
import dataclasses
from typing import ClassVar
from lmx.pipeline.experiment import Experiment
from parts_of_this_test import sizes

def shout(text: str) -> str:
    return text.upper()

@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    produces: ClassVar[str] = "report"
    size: int = sizes.SIZE
    change: object = shout

    def run(self, inputs, context):
        (context.workdir / "text.txt").write_text(f"{self.size} {context.seed}")

def get_config() -> Experiment:
    return Experiment(seed=7, stages={"hello": Hello()})

def sweep():
    for size in (1, 2):
        yield f"size{size}", Experiment(seed=7, stages={"hello": Hello(size=size)})
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with a pyproject.toml, a package of parts and one experiment two folders down."""
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "parts_of_this_test").mkdir()
    (tmp_path / "parts_of_this_test/sizes.py").write_text("SIZE = 5\n")
    (tmp_path / "experiments/topic").mkdir(parents=True)
    (tmp_path / "experiments/topic/toy.py").write_text(FILE)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("parts_of_this_test", "experiments.topic.toy")):
            del sys.modules[name]


def test_a_file_is_imported_with_its_project_root_on_the_path(project: Path) -> None:
    experiment = load_experiment(project / "experiments/topic/toy.py")
    assert experiment.seed == 7
    assert experiment.stages["hello"].size == 5  # type: ignore[attr-defined]
    assert type(experiment.stages["hello"]).__module__ == "experiments.topic.toy"


def test_the_fingerprint_does_not_depend_on_where_it_is_launched(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = fingerprint(load_experiment(project / "experiments/topic/toy.py"))
    monkeypatch.chdir(project / "experiments")
    assert fingerprint(load_experiment(Path("topic/toy.py"))) == here


def test_overrides_apply_to_the_loaded_config(project: Path) -> None:
    experiment = load_experiment(project / "experiments/topic/toy.py", [("stages.hello.size", "9"), ("seed", "1")])
    assert (experiment.seed, experiment.stages["hello"].size) == (1, 9)  # type: ignore[attr-defined]


def test_seeds_and_sweep_multiply(project: Path) -> None:
    file = project / "experiments/topic/toy.py"
    assert [variant.suffix for variant in load_variants(file)] == [""]
    seeds = load_variants(file, seeds=[0, 1])
    assert [(variant.suffix, variant.experiment.seed) for variant in seeds] == [("seed0", 0), ("seed1", 1)]
    assert [variant.suffix for variant in load_variants(file, sweep=True)] == ["size1", "size2"]
    both = load_variants(file, [("stages.hello.size", "3")], seeds=[4, 5], sweep=True)
    assert [variant.suffix for variant in both] == ["size1/seed4", "size1/seed5", "size2/seed4", "size2/seed5"]
    assert {variant.experiment.stages["hello"].size for variant in both} == {3}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="seeds 1,1 name a seed twice"):
        load_variants(file, seeds=[1, 1])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none.py", "", "defines no get_config()"),
        ("wrong.py", "def get_config(): return 3", "gives a int, expected an lmx.pipeline.experiment.Experiment"),
        ("notes.txt", "", "is not a Python file"),
        ("json.py", "def get_config(): return 3", "which is another module's name; rename the file"),
    ],
)
def test_a_file_that_is_no_experiment_gets_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        load_experiment(tmp_path / name)
    assert sentence in str(caught.value)


def test_a_missing_file_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no experiment file at"):
        load_experiment(tmp_path / "no.py")


def test_a_file_without_a_sweep_says_so(tmp_path: Path) -> None:
    (tmp_path / "lonely.py").write_text("def get_config(): ...")
    with pytest.raises(ValueError, match="defines no sweep"):
        load_variants(tmp_path / "lonely.py", sweep=True)
