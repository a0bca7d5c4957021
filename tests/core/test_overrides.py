"""Overrides are typed by the annotations, and what they refuse they refuse in one sentence."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from lmx.core import overrides
from lmx.core.overrides import override, override_all


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    peak: float = 1e-3
    warmup_steps: int = 10
    total_steps: int = 100

    def __post_init__(self) -> None:
        if self.warmup_steps > self.total_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} exceeds total_steps={self.total_steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    window: int | None = 4


def loss(x: float, *, beta: float = 0.1, margin: float | None = None) -> float:
    return beta * x + (margin or 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    schedule: Schedule = Schedule()
    layer_pattern: tuple[Block, ...] = (Block(), Block(window=None))
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: tuple[int, ...] = (1,)
    names: list[str] = dataclasses.field(default_factory=list)
    shuffle: bool = True
    mode: Literal["full", "dots"] | None = None
    color: Color = Color.RED
    path: Path = Path("a")
    label: str = ""
    number_or_text: int | str = 0
    loss: Callable[..., float] = functools.partial(loss, beta=0.2)
    weights: Mapping[str, float | None] = dataclasses.field(default_factory=lambda: {"prose": 1.0, "code": 2})
    free: Any = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    seed: int = 0
    stages: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"teacher": Train(), "student": Train()})


def student(path: str, text: str) -> Train:
    changed: Train = override(Root(), f"stages.student.{path}", text).stages["student"]
    return changed


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("schedule.peak", "3e-4", 3e-4),
        ("schedule.peak", "1", 1.0),
        ("schedule.total_steps", "100_000", 100_000),
        ("layer_pattern.0.window", "7", 7),
        ("layer_pattern.0.window", "None", None),
        ("betas", "0.8,0.9", (0.8, 0.9)),
        ("betas.1", "0.99", 0.99),
        ("sizes", "(3, 4, 5)", (3, 4, 5)),
        ("sizes", "", ()),
        ("names", "a, b", ["a", "b"]),
        ("shuffle", "false", False),
        ("shuffle", "True", True),
        ("mode", "dots", "dots"),
        ("mode", "none", None),
        ("color", "BLUE", Color.BLUE),
        ("color", "b", Color.BLUE),
        ("path", "/x/y", Path("/x/y")),
        ("label", "3", "3"),
        ("number_or_text", "3", 3),
        ("number_or_text", "three", "three"),
        ("weights.code", "0.5", 0.5),
        ("weights.code", "None", None),
        ("free", "4", 4),
    ],
)
def test_the_text_is_read_as_the_annotation_asks(path: str, text: str, expected: Any) -> None:
    value: Any = student(path, text)
    for segment in path.split("."):
        value = (
            value[int(segment)] if segment.isdigit() else value[segment] if isinstance(value, Mapping) else getattr(value, segment)
        )
    assert value == expected
    assert type(value) is type(expected)


def test_only_the_named_value_changes() -> None:
    changed = override(Root(), "stages.student.schedule.peak", "1")
    expected = dataclasses.replace(Train(), schedule=Schedule(peak=1.0))
    assert changed.stages["student"].schedule == expected.schedule
    assert changed.stages["teacher"].schedule == Schedule()
    assert list(changed.stages) == ["teacher", "student"]


def test_a_partial_takes_overrides_of_its_keywords_by_the_functions_annotations() -> None:
    assert student("loss.beta", "0.5").loss(1.0) == 0.5
    assert student("loss.margin", "1").loss(1.0) == 1.2


def test_several_overrides_are_checked_together() -> None:
    changed = override_all(Schedule(), [("warmup_steps", "500"), ("total_steps", "1000"), ("warmup_steps", "600")])
    assert changed == Schedule(warmup_steps=600, total_steps=1000)


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("sede", "1", "Root has no 'sede'; the nearest are seed"),
        ("stages.studnet.shuffle", "true", "stages has no 'studnet'; the nearest are stages.student"),
        (
            "stages.student.schedule.peek",
            "1",
            "Schedule (at stages.student.schedule) has no 'peek'; the nearest are stages.student.schedule.peak",
        ),
        ("stages.student.warmup", "1", "the nearest are stages.student.schedule.warmup_steps"),
        ("stages.student.loss.betas", "1", "stages.student.loss has no 'betas'; the nearest are stages.student.loss.beta"),
        ("qqq", "1", "Root has no 'qqq'; it has seed, stages"),
        (
            "stages.student.layer_pattern.2.window",
            "1",
            "stages.student.layer_pattern has 2 elements, so its indices are 0..1, found '2'",
        ),
        ("seed.x", "1", "seed: is 0, which has no part 'x' to override"),
        ("seed", "one", "seed: 'one' is not an int (it is 0 now)"),
        ("seed", "1.5", "seed: '1.5' is not an int"),
        ("stages.student.schedule.peak", "high", "stages.student.schedule.peak: 'high' is not a float"),
        ("stages.student.schedule.peak", "nan", "'nan' is not a float"),
        ("stages.student.shuffle", "1", "'1' is not a bool"),
        ("stages.student.layer_pattern.0.window", "wide", "'wide' is not an int | None"),
        ("stages.student.mode", "half", "'half' is not one of 'full' | 'dots' | None"),
        ("stages.student.color", "GREEN", "'GREEN' is not a Color"),
        ("stages.student.betas", "0.9", "stages.student.betas: tuple[float, float] has 2 values, '0.9' has 1"),
        ("stages.student.sizes", "1,x", "stages.student.sizes.1: 'x' is not an int"),
        (
            "stages.student.schedule",
            "cosine",
            "is a Schedule, which no text can stand for; override a part of it: peak, warmup_steps",
        ),
        ("stages.student.loss", "dpo", "is a partial, which no text can stand for; override a part of it: beta, margin"),
        (
            "stages.student.schedule.warmup_steps",
            "101",
            "override of stages.student.schedule.warmup_steps: warmup_steps=101 exceeds total_steps=100",
        ),
    ],
)
def test_a_wrong_override_gets_one_clear_sentence(path: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        override(Root(), path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_and_its_part_cannot_both_be_overridden() -> None:
    for assignments in ([("sizes", "1"), ("sizes.0", "2")], [("sizes.0", "2"), ("sizes", "1")]):
        with pytest.raises(ValueError, match="give one of the two"):
            override_all(Train(), assignments)


def test_an_assignment_needs_an_equals_sign() -> None:
    assert overrides.parse_assignment("a.b = x=1") == ("a.b", "x=1")
    with pytest.raises(ValueError, match="path=value, found 'a.b'"):
        overrides.parse_assignment("a.b")


def test_every_leaf_path_can_be_walked() -> None:
    paths = overrides.leaf_paths(Train())
    assert {"schedule.peak", "layer_pattern.1.window", "loss.margin", "weights.code", "betas.0"} <= set(paths)
