"""GGUF files as llama.cpp's converter makes them, against the Hugging Face checkpoint that they come from."""

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lmx.convert import transfer
from lmx.convert.gguf.source import open_source
from lmx.convert.hf import source as hf
from lmx.convert.source import ConversionError
from lmx.model.config import LinearHead, Llama3Scaling, TiedHead

_HEADS, _KV_HEADS, _HEAD_DIM, _WIDTH, _FFN, _VOCAB, _LAYERS = 3, 1, 8, 32, 48, 40, 2
_NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "qwen2": ("input_layernorm", "post_attention_layernorm"),
    "gemma2": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}
_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gemma2": gguf.MODEL_ARCH.GEMMA2}
KEYS = {
    "context_length": 64,
    "embedding_length": _WIDTH,
    "block_count": _LAYERS,
    "feed_forward_length": _FFN,
    "attention.head_count": _HEADS,
    "attention.head_count_kv": _KV_HEADS,
    "attention.key_length": _HEAD_DIM,
    "attention.value_length": _HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}
_GEMMA_KEYS = {"attention.sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _hugging_face(family: str, tied: bool) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors of a tiny random model."""
    rng = np.random.default_rng(3)
    shapes = {"model.embed_tokens.weight": (_VOCAB, _WIDTH), "model.norm.weight": (_WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (_VOCAB, _WIDTH)
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}."
        heads = {"q": _HEADS * _HEAD_DIM, "k": _KV_HEADS * _HEAD_DIM, "v": _KV_HEADS * _HEAD_DIM}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (rows, _WIDTH) for name, rows in heads.items()}
        if family == "qwen2":
            shapes |= {f"{at}self_attn.{name}_proj.bias": (rows,) for name, rows in heads.items()}
        shapes |= {f"{at}self_attn.o_proj.weight": (_WIDTH, _HEADS * _HEAD_DIM), f"{at}mlp.down_proj.weight": (_WIDTH, _FFN)}
        shapes |= {f"{at}mlp.{name}_proj.weight": (_FFN, _WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}{name}.weight": (_WIDTH,) for name in _NORMS[family]}
    tensors = {name: (rng.normal(size=shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
    config = {
        "model_type": family,
        "vocab_size": _VOCAB,
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": _FFN,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }
    if family == "gemma2":
        config |= {
            "sliding_window": 4,
            "query_pre_attn_scalar": _HEAD_DIM,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        }
        config |= {"hidden_activation": "gelu_pytorch_tanh"}
    return config, tensors


def _as_llama_cpp(family: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names of the gguf package, changed as llama.cpp's converter documents."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family], _LAYERS)
    converted = {}
    for name, values in tensors.items():
        if family == "llama" and (heads := {"q_proj.weight": _HEADS, "k_proj.weight": _KV_HEADS}.get(name.split("self_attn.")[-1])):
            values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if family == "gemma2" and name.endswith("norm.weight"):
            values = values + np.float32(1)
        converted[names.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(values)
    return converted


@pytest.fixture
def checkpoint(write_gguf, tmp_path):
    """checkpoint(family, tied, extra keys, extra tensors) -> (Hugging Face directory, GGUF file) of the same model."""

    def make(family: str, tied: bool = False, keys=(), tensors=()) -> tuple[Path, Path]:
        config, weights = _hugging_face(family, tied)
        folder = tmp_path / "hf"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        given_keys = KEYS | (_GEMMA_KEYS if family == "gemma2" else {}) | dict(keys)
        given_keys = {name: value for name, value in given_keys.items() if value is not None}
        return folder, write_gguf(family, given_keys, _as_llama_cpp(family, weights) | dict(tensors))

    return make


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("gemma2", True)])
def test_a_file_of_llama_cpp_is_the_model_that_it_was_made_from(checkpoint, load, logits, family, tied):
    folder, path = checkpoint(family, tied)
    source, original = open_source(path), hf.HuggingFaceSource(folder)
    transfer.check(source)
    params, expected = load(source), load(original)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-24 if family == "gemma2" else 0)
    assert source.family == family
    assert isinstance(source.config.head, TiedHead if tied else LinearHead)
    if (family, tied) != ("llama", True):  # the tie is all that is new there
        np.testing.assert_allclose(logits(source.config, params), logits(original.config, expected), rtol=0, atol=1e-5)
    source.close()
    original.close()


def test_the_config_is_that_of_the_hugging_face_checkpoint(checkpoint):
    for family in ("llama", "qwen2", "gemma2"):
        folder, path = checkpoint(family, tied=family == "gemma2")
        source, original = open_source(path), hf.HuggingFaceSource(folder)
        expected, found = original.config, source.config
        assert (found.max_length, found.final_norm, found.embedding_scale) == (64, expected.final_norm, expected.embedding_scale)
        for ours, theirs in zip(found.layer_pattern, expected.layer_pattern, strict=True):
            assert (ours.ffn, ours.norm, ours.post_norms) == (theirs.ffn, theirs.norm, theirs.post_norms)
            assert (ours.attention.window, ours.attention.soft_cap) == (theirs.attention.window, theirs.attention.soft_cap)
            assert (ours.attention.rope, ours.attention.qkv_bias) == (theirs.attention.rope, theirs.attention.qkv_bias)
        source.close()
        original.close()


def test_quantised_tensors_come_in_as_float32(write_gguf, checkpoint):
    _, path = checkpoint("llama")
    weights = _as_llama_cpp("llama", _hugging_face("llama", False)[1])
    types = {"blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q4_0, "token_embd.weight": gguf.GGMLQuantizationType.Q8_0}
    stored = weights | {name: gguf.quants.quantize(weights[name], kind) for name, kind in types.items()}
    source = open_source(write_gguf("llama", KEYS, stored, types, name="quantised.gguf"))
    for name, kind in types.items():
        assert source.tensors[name].dtype == "float32"
        np.testing.assert_array_equal(source.read(name), gguf.quants.dequantize(stored[name], kind))
        np.testing.assert_array_equal(source.read(name, 3, 9), source.read(name)[3:9])
    source.close()


def test_llama_3_divisors_become_a_scaling_and_are_not_left_over(checkpoint, load):
    divisors = np.array([1.0, 1.0, 1.0, 8.0], np.float32)  # pairs of wavelength 6, 63, 628 and 6283 around a trained length of 1000
    _, path = checkpoint("llama", keys={"rope.scaling.original_context_length": 3000}, tensors={"rope_freqs.weight": divisors})
    source = open_source(path)
    assert source.config.layer_pattern[0].attention.rope.scaling == Llama3Scaling(factor=8.0, original_length=3000)
    assert source.ignored == {"rope_freqs.weight": "its scaling of the rotary frequencies is in the config"}
    load(source)
    source.close()


def test_an_odd_number_of_gemma_layers_alternates_too(checkpoint, write_gguf):
    weights = _as_llama_cpp("gemma2", _hugging_face("gemma2", True)[1])
    one = {name: values for name, values in weights.items() if not name.startswith("blk.1.")}
    source = open_source(write_gguf("gemma2", KEYS | _GEMMA_KEYS | {"block_count": 1}, one, name="one.gguf"))
    assert [block.attention.window for block in source.config.layer_pattern] == [4]
    assert "as in llama.cpp, 1 layers make it 8 ** -0.5" in source.notes[0]
    source.close()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"context_length": None}, "llama.context_length is missing"),
        ({"context_length": "long"}, "is 'long', not a whole number"),
        ({"block_count": 0}, "is 0, not a whole number from 1"),
        ({"block_count": 1_000_000}, "holds only 21 tensors"),
        ({"embedding_length": 64}, r"token_embd.weight has the shape \(40, 64\)"),
        ({"attention.head_count": 4}, r"blk.0.attn_q.weight has the shape \(32, 32\)"),
        ({"attention.head_count_kv": 2}, "must be a multiple of kv_heads=2"),
        ({"attention.key_length": 7}, "head_dim=7 must be even"),
        ({"attention.value_length": 16}, "lmx does not implement that"),
        ({"feed_forward_length": [48, 32]}, "differs from layer to layer"),
        ({"expert_count": 8}, "expert_count is 8; lmx does not implement that"),
        ({"attention.sliding_window": 16}, "lmx cannot tell which is right"),
        ({"attention.causal": False}, "lmx does not implement that"),
        ({"attention.scale": 0.5}, "does not know the key llama.attention.scale"),
        ({"vocab_size": 41}, "has only 40 rows"),
        ({"general.type": "adapter"}, "no model but a 'adapter'"),
    ],
)
def test_what_lmx_does_not_compute_is_refused(checkpoint, keys, sentence):
    _, path = checkpoint("llama", keys=keys)
    with pytest.raises(ConversionError, match=sentence) as caught:
        open_source(path)
    assert str(path) in str(caught.value)


def test_keys_that_change_nothing_are_accepted(checkpoint):
    keys = {
        "expert_count": 0,
        "attention.sliding_window": 64,
        "feed_forward_length": [48, 48],
        "vocab_size": 40,
        "attention.causal": True,
    }
    open_source(checkpoint("llama", keys=keys)[1]).close()


def test_other_architectures_are_refused_by_name(write_gguf):
    path = write_gguf("qwen2moe", {}, {"token_embd.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(ConversionError, match="'qwen2moe'; of GGUF files lmx reads llama, qwen2, gemma2"):
        open_source(path)


def test_a_tensor_too_many_or_too_few_is_named(checkpoint, write_gguf):
    _, path = checkpoint("llama", tensors={"blk.0.attn_output.bias": np.zeros(_WIDTH, np.float32)})
    source = open_source(path)
    with pytest.raises(ConversionError, match="blk.0.attn_output.bias"):
        transfer.check(source)
    source.close()
    weights = _as_llama_cpp("llama", _hugging_face("llama", False)[1])
    del weights["blk.1.ffn_down.weight"]
    source = open_source(write_gguf("llama", KEYS, weights, name="few.gguf"))
    with pytest.raises(ConversionError, match="blk.1.ffn_down.weight"):
        transfer.check(source)
    source.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_never_crashed_on(checkpoint, tmp_path, data):
    _, path = checkpoint("llama")
    content = bytearray(path.read_bytes())
    header = 2500  # bytes of metadata and tensor descriptions
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "fuzzed.gguf"
    damaged.write_bytes(content)
    try:
        source = open_source(damaged)
    except ConversionError as error:
        assert "\n" not in str(error)
        return
    try:
        transfer.check(source)
        for name in source.tensors:
            source.read(name)
    except ConversionError as error:
        assert "\n" not in str(error)
    finally:
        source.close()
