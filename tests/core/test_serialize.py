"""Configs survive the way through JSON, and a file can create nothing but what the annotations name."""

import dataclasses
import enum
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.models import afm, gemma2, llama3, qwen2, tiny
from lmx.core import serialize
from lmx.model import activation
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    Llama3Scaling,
    NormConfig,
    RopeConfig,
    ScalarHead,
    TiedHead,
)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    size: int
    rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything:
    flag: bool
    count: int
    rate: float
    name: str
    path: Path
    maybe: int | None
    mode: Literal["a", "b"]
    color: Color
    pair: tuple[int, str]
    many: tuple[float, ...]
    items: list[int]
    table: dict[str, float]
    numbered: Mapping[int, str]
    part: Small | Other | None
    parts: tuple[Small | Other, ...]


def double(x: float) -> float:
    return 2 * x


def scaled(x: float, *, by: float) -> float:
    return by * x


finite_or_not = st.floats(allow_nan=False)
smalls = st.builds(Small, size=st.integers(), rate=finite_or_not) | st.builds(Other, size=st.integers())
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(),
    rate=finite_or_not,
    name=st.text(),
    path=st.sampled_from([Path("a/b"), Path("/tmp"), Path(".")]),
    maybe=st.none() | st.integers(),
    mode=st.sampled_from(["a", "b"]),
    color=st.sampled_from(Color),
    pair=st.tuples(st.integers(), st.text()),
    many=st.lists(finite_or_not).map(tuple),
    items=st.lists(st.integers()),
    table=st.dictionaries(st.text() | st.sampled_from(["class", "path", "items"]), finite_or_not),
    numbered=st.dictionaries(st.integers(), st.text()),
    part=st.none() | smalls,
    parts=st.lists(smalls).map(tuple),
)


@given(everything)
def test_any_config_is_the_same_after_a_round_trip_through_json_text(config: Everything) -> None:
    text = json.dumps(serialize.to_json(config), allow_nan=False)
    assert serialize.from_json(Everything, json.loads(text)) == config


norms = st.builds(NormConfig, eps=st.floats(1e-8, 1e-4), unit_offset=st.booleans())
attentions = st.builds(
    AttentionConfig,
    q_heads=st.just(4),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([8, 16]),
    rope=st.builds(RopeConfig, theta=st.floats(1, 1e6), scaling=st.none() | st.builds(Llama3Scaling)),
    window=st.none() | st.integers(1, 64),
    qk_norm=st.none() | norms,
)
ffns = st.builds(FFNConfig, ffn_dim=st.integers(1, 64), activation=st.sampled_from(list(activation.ACTIVATIONS.values())))
blocks = st.builds(BlockConfig, attention=attentions, ffn=ffns, norm=norms)
decoders = st.builds(
    DecoderConfig,
    vocab_size=st.integers(1, 1000),
    model_dim=st.integers(1, 64),
    num_layers=st.just(4),
    layer_pattern=st.lists(blocks, min_size=1, max_size=2).map(tuple),
    final_norm=norms,
    head=st.builds(TiedHead) | st.builds(LinearHead, soft_cap=st.none() | st.floats(1, 50)) | st.builds(ScalarHead),
    max_length=st.integers(1, 4096),
)


@given(decoders)
def test_any_decoder_is_the_same_after_a_round_trip(config: DecoderConfig) -> None:
    data = json.loads(json.dumps(serialize.to_json(config, activation.ACTIVATIONS)))
    assert serialize.from_json(DecoderConfig, data, activation.ACTIVATIONS) == config


def published() -> list[Callable[[], DecoderConfig]]:
    """Every function of configs/models that gives a model without being asked for sizes."""
    functions = [function for family in (afm, gemma2, llama3, qwen2, tiny) for _, function in inspect.getmembers(family, callable)]
    named = [function for function in functions if function.__module__.startswith("configs.models") and function.__name__[0] != "_"]
    return [f for f in named if all(p.default is not p.empty for p in inspect.signature(f).parameters.values())]


@pytest.mark.parametrize("model", published(), ids=lambda model: model.__name__)
def test_every_published_model_is_the_same_after_a_round_trip(model: Callable[[], DecoderConfig]) -> None:
    data = json.loads(json.dumps(serialize.to_json(model(), activation.ACTIVATIONS)))
    assert serialize.from_json(DecoderConfig, data, activation.ACTIVATIONS) == model()


@pytest.fixture
def decoder_json() -> dict[str, Any]:
    norm = NormConfig(eps=1e-6)
    attention = AttentionConfig(q_heads=2, kv_heads=1, head_dim=4, rope=RopeConfig(theta=1e4))
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=8, activation=activation.silu), norm=norm)
    config = DecoderConfig(
        vocab_size=16, model_dim=8, num_layers=2, layer_pattern=(block,), final_norm=norm, head=TiedHead(), max_length=8
    )
    data: dict[str, Any] = serialize.to_json(config, activation.ACTIVATIONS)
    return data


def refusal(data: Any) -> str:
    with pytest.raises(ValueError) as caught:
        serialize.from_json(DecoderConfig, data, activation.ACTIVATIONS)
    return str(caught.value)


def test_a_file_cannot_name_a_function_outside_the_table(decoder_json: dict[str, Any]) -> None:
    decoder_json["layer_pattern"][0]["ffn"]["activation"] = {"function": "os.system"}
    assert refusal(decoder_json).startswith(
        "layer_pattern.0.ffn.activation: function 'os.system' is not one of ['gelu_tanh', 'silu']"
    )


def test_a_file_cannot_name_a_class_outside_the_annotation(decoder_json: dict[str, Any]) -> None:
    decoder_json["head"]["class"] = "NormConfig"
    assert refusal(decoder_json) == "head: expected TiedHead | LinearHead | ScalarHead, found a 'NormConfig'"


def test_a_file_of_another_architecture_is_refused_with_the_place(decoder_json: dict[str, Any]) -> None:
    decoder_json["layer_pattern"][0]["attention"]["alibi"] = True
    assert "layer_pattern.0.attention: AttentionConfig has no field 'alibi'" in refusal(decoder_json)
    del decoder_json["layer_pattern"][0]["attention"]["alibi"]
    del decoder_json["vocab_size"]
    assert "DecoderConfig lacks the field 'vocab_size'" in refusal(decoder_json)


def test_checks_of_the_dataclass_run_and_name_the_place(decoder_json: dict[str, Any]) -> None:
    decoder_json["layer_pattern"][0]["attention"]["kv_heads"] = 0
    assert refusal(decoder_json).startswith("layer_pattern.0.attention: ")


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", "16"), ("vocab_size", 1.5), ("vocab_size", True), ("head", None), ("layer_pattern", {})]
)
def test_ill_typed_values_are_refused_with_the_path(decoder_json: dict[str, Any], field: str, value: Any) -> None:
    decoder_json[field] = value
    assert refusal(decoder_json).startswith(f"{field}: expected ")


@pytest.mark.parametrize("data", [None, [], 3, "DecoderConfig", {}, {"class": "Exception"}])
def test_a_file_that_holds_something_else_is_refused(data: Any) -> None:
    assert refusal(data).startswith("the file: expected DecoderConfig")


def test_a_function_that_the_reader_would_refuse_is_not_written() -> None:
    ffn = FFNConfig(ffn_dim=4, activation=double)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation: double is not one of"):
        serialize.to_json(ffn, activation.ACTIVATIONS)


def test_functions_are_known_by_name_and_partials_by_name_and_arguments() -> None:
    assert serialize.canonical(double) == {"function": f"{__name__}.double"}
    tree = serialize.canonical(functools.partial(scaled, by=3.0))
    assert tree == {"partial": f"{__name__}.scaled", "args": [], "keywords": {"by": 3.0}}


def test_numpy_scalars_and_dtypes_count_by_value() -> None:
    assert serialize.canonical((np.int32(3), np.float64(0.5), np.bool_(True), np.dtype("int32"))) == [
        3,
        0.5,
        True,
        {"dtype": "int32"},
    ]
    assert serialize.canonical(math.inf) == {"float": "inf"}


def test_values_without_an_identity_are_refused_with_their_place() -> None:
    captured = 3

    def closure(x: int) -> int:
        return x + captured

    holder: Callable[[Any], dict[str, Any]] = lambda value: {"loss": {"fn": value}}  # noqa: E731
    for value, sentence in [
        (lambda x: x, "loss.fn: a lambda has no lasting name"),
        (closure, "is defined inside a function"),
        (np.zeros(3), "loss.fn: a ndarray can't stand in a config"),
        (object(), "loss.fn: a object can't stand in a config"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            serialize.canonical(holder(value))
