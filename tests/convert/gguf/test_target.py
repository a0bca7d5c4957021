"""GGUF files that lmx writes, read back by the gguf package and by lmx."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from lmx.convert.gguf.source import open_source
from lmx.convert.gguf.target import open_target
from lmx.convert.gguf.writer import GgufWriter, PlannedTensor
from lmx.convert.rules import parameter_shapes
from lmx.convert.source import ConversionError, ModelDescription
from lmx.model.config import (
    DecoderConfig,
    LinearScaling,
    Llama3Scaling,
    NormConfig,
    RopeConfig,
    ScalarHead,
    YarnScaling,
)


def _describe(config: DecoderConfig, stored: str = "float32", **fields: Any) -> ModelDescription:
    values = {"family": None, "dtype": None, "tokenizer": None, "chat": None} | fields
    return ModelDescription(config=config, dtypes=dict.fromkeys(parameter_shapes(config), stored), **values)


@pytest.fixture
def export(tmp_path) -> Callable[..., tuple[Path, Any]]:
    """export(config, params, **description) -> (file, target): a model written as GGUF."""

    def write(config: DecoderConfig, params: Any, **fields: Any) -> tuple[Path, Any]:
        path = tmp_path / "model.gguf"
        target = open_target(path, _describe(config, **fields))
        target.begin()
        for rule in target.rules:
            leaf = params
            for key in rule.place.leaf.split("/"):
                leaf = leaf[key]
            target.write(rule.name, rule.to_foreign(np.asarray(leaf[rule.place.indices])))
        target.finish()
        return path, target

    return write


def _with_scaling(config: DecoderConfig, scaling: Any) -> DecoderConfig:
    block = config.layer_pattern[0]
    attention = dataclasses.replace(block.attention, rope=RopeConfig(theta=10_000.0, scaling=scaling))
    return dataclasses.replace(config, layer_pattern=(dataclasses.replace(block, attention=attention),))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_round_trip_keeps_config_and_every_bit(tiny, random_params, export, load, family):
    config = tiny(family)
    params = random_params(config)
    path, target = export(config, params)
    source = open_source(path)
    assert (source.family, target.family, source.config) == (family, family, config)
    back = load(source)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        if family == "gemma2" and ours.shape[-1] == config.model_dim and ours.ndim <= 2 and len(ours) != config.vocab_size:
            np.testing.assert_array_equal(np.float32(1) + ours, np.float32(1) + theirs)  # the multiplier is what counts
        else:
            np.testing.assert_array_equal(ours, theirs)
    source.close()


def test_gemma_gains_of_bfloat16_come_back_bit_by_bit(tiny, random_params, export, load):
    config = tiny("gemma2")
    params = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), random_params(config))
    path, _ = export(config, params, stored="bfloat16")
    source = open_source(path)
    assert {source.tensors[rule.name].dtype for rule in source.rules} == {"bfloat16"}
    for ours, theirs in zip(jax.tree.leaves(load(source)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    source.close()


def test_vectors_that_bfloat16_cannot_hold_stay_float32(tiny, random_params, export):
    config = tiny("llama")
    path, _ = export(config, random_params(config), dtype="bfloat16")
    source = open_source(path)
    assert source.tensors["token_embd.weight"].dtype == "bfloat16"
    assert source.tensors["output_norm.weight"].dtype == "float32"
    source.close()


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(factor=2.0),
        Llama3Scaling(factor=4.0, original_length=512),
        YarnScaling(factor=4.0, original_length=32, attention_factor=1.25),
    ],
)
def test_rope_scalings_come_back(tiny, random_params, export, scaling):
    config = _with_scaling(tiny("llama"), scaling)
    path, _ = export(config, random_params(config))
    source = open_source(path)
    assert source.config == config
    source.close()


@pytest.mark.parametrize(
    ("dtype", "kind", "file_type"),
    [("float32", Type.F32, 0), ("float16", Type.F16, 1), ("bfloat16", Type.BF16, 32), ("q8_0", Type.Q8_0, 7)],
)
def test_types_are_those_of_llama_cpp_and_the_package_reads_the_numbers(tiny, random_params, export, dtype, kind, file_type):
    config = tiny("qwen2")
    params = random_params(config)
    path, target = export(config, params, dtype=dtype)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.file_type"].contents() == file_type
    assert path.stat().st_size == target.size_bytes
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in stored.items():
        vector = len(tensor.shape) == 1
        whole_blocks = tensor.shape[0] % 32 == 0
        assert tensor.tensor_type == (Type.F32 if vector else kind if whole_blocks or kind != Type.Q8_0 else Type.F16), name
    table = gguf.quants.dequantize(stored["token_embd.weight"].data, kind)
    expected = gguf.quants.dequantize(gguf.quants.quantize(params["embed"]["table"], kind), kind)
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(stored["blk.1.attn_norm.weight"].data, params["blocks"]["0"]["attention_norm"]["gain"][1])
    up = gguf.quants.dequantize(stored["blk.1.ffn_up.weight"].data, kind)
    np.testing.assert_allclose(up, params["blocks"]["0"]["ffn"]["up"]["kernel"][1].T, rtol=1e-2, atol=2e-3)


def test_rows_that_are_no_whole_blocks_are_noted_and_written_as_float16(tiny, random_params, export):
    config = tiny("llama")
    path, target = export(config, random_params(config), dtype="q8_0")
    stored = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert stored["blk.0.attn_output.weight"] == Type.F16 and stored["blk.0.attn_q.weight"] == Type.Q8_0
    assert any("blk.0.attn_output.weight is written as F16" in note for note in target.notes)


def test_each_tensor_keeps_its_own_dtype_unless_another_is_asked_for(tiny, random_params, tmp_path):
    config = tiny("llama")
    dtypes = dict.fromkeys(parameter_shapes(config), "bfloat16") | {"embed/table": "float32"}
    model = dataclasses.replace(_describe(config), dtypes=dtypes)
    target = open_target(tmp_path / "m.gguf", model)
    assert target.dtype == "bfloat16"
    target.begin()
    stored = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (stored["token_embd.weight"], stored["output.weight"], stored["output_norm.weight"]) == (Type.F32, Type.BF16, Type.F32)
    target.abort()


def test_a_table_may_come_in_pieces_and_an_incomplete_one_is_refused(tmp_path):
    values = np.random.default_rng(0).normal(size=(70, 32)).astype(np.float32)
    writer = GgufWriter(tmp_path / "m.gguf", {"general.architecture": "llama"}, [PlannedTensor("t", values.shape, Type.Q8_0)])
    writer.begin()
    writer.write("t", values[50:], 50)
    with pytest.raises(ConversionError, match="1 tensors were not written whole, the first is 't'"):
        writer.finish()
    writer.write("t", values[:50])
    writer.finish()
    np.testing.assert_array_equal(gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].data, gguf.quants.quantize(values, Type.Q8_0))


def test_metadata_of_every_type_is_read_back_by_the_package(tmp_path):
    metadata = {
        "a": True,
        "b": 7,
        "c": -7,
        "d": 1 << 40,
        "e": 0.5,
        "f": "\u4e16",
        "g": ["x", "", "\u00e9"],
        "h": [1, -2],
        "i": [0.5, 1.0],
        "j": b"\x00\xff",
    }
    writer = GgufWriter(tmp_path / "m.gguf", metadata, [])
    writer.begin()
    writer.finish()
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert found == metadata | {"j": [0, 255]}
    assert reader.fields["b"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["h"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    with pytest.raises(ConversionError, match="the metadata value of 'k' is neither"):
        GgufWriter(tmp_path / "n.gguf", {"k": [None]}, [])


def _changed(config: DecoderConfig, what: str) -> DecoderConfig:
    block = config.layer_pattern[0]
    attention = {
        "window": {"window": 8},
        "soft cap": {"soft_cap": 20.0},
        "scale": {"scale": 0.5},
        "qk norm": {"qk_norm": NormConfig(eps=1e-6)},
        "theta": {"rope": RopeConfig(theta=10_000.0, scaling=YarnScaling(factor=2.0, original_length=4096, truncate=False))},
    }
    if what in attention:
        block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, **attention[what]))
        return dataclasses.replace(config, layer_pattern=(block,))
    if what == "post norms":
        return dataclasses.replace(config, layer_pattern=(dataclasses.replace(block, post_norms=True),))
    return dataclasses.replace(config, head=ScalarHead()) if what == "head" else dataclasses.replace(config, embedding_scale=True)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("window", "attention's window = 8, which would read None"),
        ("soft cap", "soft_cap = 20.0, which would read None"),
        ("scale", "scale = 0.5, which would read 0.35"),
        ("qk norm", "qk_norm"),
        ("theta", "rope's frequencies"),
        ("post norms", "post_norms = True, which would read False"),
        ("head", "head's kind = 'ScalarHead'"),
        ("embedding scale", "embedding_scale = True, which would read False"),
    ],
)
def test_a_model_that_llama_cpp_cannot_express_is_not_written(tiny, tmp_path, what, sentence):
    with pytest.raises(ConversionError, match=sentence):
        open_target(tmp_path / "m.gguf", _describe(_changed(tiny("llama"), what), family="llama"))
    assert not list(tmp_path.iterdir())


def test_without_a_family_all_are_tried_and_named(tiny, tmp_path):
    with pytest.raises(ConversionError, match="cannot be written as GGUF: .*llama cannot.*qwen2 always has biases.*gemma2 cannot"):
        open_target(tmp_path / "m.gguf", _describe(_changed(tiny("llama"), "soft cap")))


def test_an_unknown_dtype_is_refused(tiny, tmp_path):
    with pytest.raises(ConversionError, match="'q4_k' is none that lmx writes"):
        open_target(tmp_path / "m.gguf", _describe(tiny("llama"), dtype="q4_k"))


def test_a_model_without_a_tokenizer_is_written_for_token_ids(tiny, tmp_path):
    target = open_target(tmp_path / "m.gguf", _describe(tiny("llama")))
    assert "no tokenizer" in target.notes[0]
    target.begin()
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.model"].contents() == "no_vocab"
    target.abort()
