"""A fingerprint is equal exactly when the values are."""

import dataclasses
import functools
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmx.core.fingerprint import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    rate: Any = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameFields:
    rate: Any = 0.1
    sizes: tuple[int, ...] = (1, 2)


def test_it_is_the_hash_of_a_canonical_text() -> None:
    # Changes only if the canonical form does, and then every workdir in the world refuses to go on.
    config = {"rate": 3e-4, "sizes": (1, 2), "name": "é", "place": Path("a/b"), "off": None, "limit": float("inf")}
    text = (
        r'{"config":{"limit":{"float":"inf"},"name":"\u00e9","off":null,"place":{"path":"a/b"},"rate":0.0003,"sizes":[1,2]},'
        r'"inputs":{"tokenizer":"abc"}}'
    )
    assert fingerprint(config, {"tokenizer": "abc"}) == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_dict_keys_and_the_form_of_a_number_do_not_count() -> None:
    assert fingerprint({"a": 1, "b": 2}, {"x": "1", "y": "2"}) == fingerprint({"b": 2, "a": 1}, {"y": "2", "x": "1"})
    assert (
        fingerprint(Config(rate=np.float64(0.25))) == fingerprint(Config(rate=0.25)) == fingerprint(Config(rate=np.float32(0.25)))
    )
    assert fingerprint(Config(rate=functools.partial(max, 1, key=len))) == fingerprint(
        Config(rate=functools.partial(max, 1, key=len))
    )


def test_every_value_counts() -> None:
    values = [
        0.1,
        0.1000000000000001,
        1,
        1.0,
        True,
        "1",
        None,
        Path("1"),
        (1,),
        ((1,),),
        {"a": 1},
        float("nan"),
        float("inf"),
        -0.0,
        0.0,
    ]
    values += [max, min, functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1), Config(), SameFields()]
    prints = [fingerprint(Config(rate=value)) for value in values]
    assert len(set(prints)) == len(values)
    assert fingerprint(Config()) != fingerprint(SameFields())
    assert fingerprint(Config()) != fingerprint(Config(sizes=(2, 1)))


def test_the_inputs_count() -> None:
    assert len({fingerprint(Config(), inputs) for inputs in ({}, {"a": "1"}, {"b": "1"}, {"a": "2"})}) == 4


def test_it_is_the_same_in_another_process() -> None:
    code = "from lmx.core.fingerprint import fingerprint; print(fingerprint({'s': frozenset('abcdef'), 'r': 0.1, 'f': max}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint({"s": frozenset("abcdef"), "r": 0.1, "f": max})


def test_a_lambda_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match="rate: a lambda has no lasting name"):
        fingerprint(Config(rate=lambda step: step))
