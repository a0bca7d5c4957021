"""Resolved configs and differences read well."""

import dataclasses
import functools
import json
import subprocess
import sys
from typing import Any

from lmx.core import config, serialize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    peak: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    optimizer: Optimizer = Optimizer()
    loss: Any = functools.partial(max, key=len)
    parts: tuple[Any, ...] = (Optimizer(), 3)
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    stages: dict[str, Any]
    seed: int = 0


def test_the_text_shows_every_value_once_nested_by_indentation() -> None:
    assert config.to_text(Experiment(stages={"sft": Stage()})) == (
        "Experiment\n"
        "  stages:\n"
        "    sft: Stage\n"
        "      optimizer: Optimizer(peak=0.001, betas=(0.9, 0.95))\n"
        "      loss: partial builtins.max(key=builtins.len)\n"
        "      parts:\n"
        "        0: Optimizer(peak=0.001, betas=(0.9, 0.95))\n"
        "        1: 3\n"
        "      names: ('a')\n"
        "  seed: 0"
    )


def test_equal_configs_do_not_differ() -> None:
    assert config.diff(Stage(), Stage()) == ""


def test_a_difference_names_path_and_both_values() -> None:
    changed = Stage(optimizer=Optimizer(peak=3e-4), names=("a", "b"))
    assert config.diff(Stage(), changed) == "optimizer.peak: 0.001 -> 0.0003\nnames: ('a') -> ('a', 'b')"
    assert config.diff(Stage(loss=functools.partial(max, key=len)), Stage(loss=functools.partial(max, key=abs))) == (
        "loss.keywords.key.function: 'builtins.len' -> 'builtins.abs'"
    )


def test_a_part_that_comes_or_goes_is_absent_on_the_other_side() -> None:
    old, new = Experiment(stages={"a": 1}), Experiment(stages={"b": 1})
    assert config.diff(old, new) == "stages.a: 1 -> (absent)\nstages.b: (absent) -> 1"


def test_numbers_of_different_types_differ() -> None:
    assert config.diff({"a": 1}, {"a": 1.0}) == "a: 1 -> 1.0"
    assert config.diff({"a": True}, {"a": 1}) == "a: True -> 1"


def test_a_config_read_from_a_file_differs_from_itself_in_nothing() -> None:
    tree = serialize.canonical(Experiment(stages={"sft": Stage()}))
    assert config.diff_json(json.loads(json.dumps(tree)), tree) == ""


def test_the_config_tools_load_without_jax() -> None:
    modules = "lmx.core.config, lmx.core.fingerprint, lmx.core.overrides, lmx.core.serialize, lmx.core.validate"
    code = f"import sys, {modules}; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
