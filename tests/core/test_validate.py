"""Values of the wrong type are found, and right ones never refused."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from lmx.core.validate import validate


class Source(Protocol):
    def read(self) -> str:
        """Text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    name: str | None = None
    mode: Literal["a", 1] = "a"
    path: Path = Path()
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    pair: tuple[int, str] = (1, "a")
    table: Mapping[str, int | Part] = dataclasses.field(default_factory=dict)
    values: Sequence[float] = ()
    function: Callable[[int], int] = abs
    source: Source | None = None
    kind: type[Part] = Part
    anything: Any = None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"count": np.int64(3), "rate": 1, "flag": np.bool_(True)},
        {"rate": np.float32(1)},
        {"name": "x", "mode": 1, "parts": (Part(), Part()), "table": {"a": 1, "b": Part()}, "values": [1, 2.0]},
        {"source": object(), "anything": object(), "function": Part},
    ],
)
def test_right_values_pass(changes: dict[str, Any]) -> None:
    config = Whole(**changes)
    assert validate(config) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 1.0}, "x.count must be int, found 1.0, float"),
        ({"count": True}, "x.count must be int, found True, bool"),
        ({"rate": "3e-4"}, "x.rate must be float, found '3e-4', str"),
        ({"flag": 1}, "x.flag must be bool, found 1, int"),
        ({"name": 3}, "x.name must be str | None, found 3, int"),
        ({"mode": True}, "x.mode must be 'a' | 1, found True, bool"),
        ({"path": "a"}, "x.path must be Path, found 'a', str"),
        ({"part": None}, "x.part must be Part, found None, NoneType"),
        ({"part": Part(size="1")}, "x.part.size must be int, found '1', str"),  # type: ignore[arg-type]
        ({"parts": (Part(), 3)}, "x.parts.1 must be Part, found 3, int"),
        ({"pair": (1,)}, "x.pair must be tuple[int, str], found (1,), tuple"),
        ({"pair": (1, 2)}, "x.pair.1 must be str, found 2, int"),
        ({"table": {"a": "b"}}, "x.table.a must be int | Part, found 'b', str"),
        ({"function": 3}, "x.function must be a function, found 3, int"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        validate(Whole(**changes), "x")
    assert str(caught.value) == sentence
