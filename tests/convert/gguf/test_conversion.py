"""`lmx.convert` from a GGUF file to an artifact and back: tensors, config, tokenizer and chat template."""

import dataclasses

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quants

import lmx
from lmx.convert import convert
from lmx.convert.gguf.families import TABLES
from lmx.convert.gguf.target import open_target
from lmx.convert.rules import expand, parameter_shapes
from lmx.convert.source import ModelDescription
from lmx.tokenizer.gguf import from_metadata

_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
_MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 w"]
_ROWS = 288


def _byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary, by GPT-2's rule."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _tokenizer_keys() -> dict:
    tokens = [*_byte_characters(), *(merge.replace(" ", "") for merge in _MERGES), "<|im_start|>", "<|im_end|>"]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    types = [normal] * (len(tokens) - 2) + [control] * 2 + [unused] * (_ROWS - len(tokens))
    keys = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens + [f"[PAD{index}]" for index in range(len(tokens), _ROWS)],
        "token_type": [int(kind) for kind in types],
        "merges": _MERGES,
        "eos_token_id": tokens.index("<|im_end|>"),
        "padding_token_id": tokens.index("<|im_start|>"),
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | {"tokenizer.chat_template": _TEMPLATE}


@pytest.fixture
def qwen(write_gguf, tiny):
    """qwen(kind): a tiny qwen2 whose matrices are of a type, with tokenizer and chat template, and its stored tensors."""

    def make(kind: Type):
        config = tiny("qwen2")
        attention, block = config.layer_pattern[0].attention, config.layer_pattern[0]
        keys = {
            "context_length": config.max_length,
            "embedding_length": config.model_dim,
            "block_count": config.num_layers,
            "feed_forward_length": block.ffn.ffn_dim,
            "attention.head_count": attention.q_heads,
            "attention.head_count_kv": attention.kv_heads,
            "attention.key_length": attention.head_dim,
            "attention.layer_norm_rms_epsilon": block.norm.eps,
            "rope.freq_base": attention.rope.theta,
        }
        rng = np.random.default_rng(1)
        tensors, types = {}, {}
        for rule in expand(config, TABLES["qwen2"], "qwen2"):
            shape = (_ROWS, config.model_dim) if "table" in rule.place.leaf else rule.foreign_shape()
            values = rng.normal(size=shape).astype(np.float32).astype(np.float16).astype(np.float32)
            types[rule.name] = (
                Type.F32 if len(shape) == 1 else kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16
            )
            tensors[rule.name] = quants.quantize(values, types[rule.name])
        return write_gguf("qwen2", keys | _tokenizer_keys(), tensors, types), tensors

    return make


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F32, "float32"), (Type.F16, "float16"), (Type.Q4_0, "float32")])
def test_a_file_becomes_an_artifact_with_tokenizer_and_template(qwen, tmp_path, kind, dtype):
    path, tensors = qwen(kind)
    report = convert(path, tmp_path / "model")
    assert (report.source_kind, report.destination_kind, report.family, report.tensors) == ("gguf", "lmx", "qwen2", len(tensors))
    loaded = lmx.load(tmp_path / "model")
    table = np.asarray(loaded.params["embed"]["table"])
    assert table.dtype == dtype
    np.testing.assert_array_equal(table, quants.dequantize(tensors["token_embd.weight"], kind))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hello w\u00e9")) == "hello w\u00e9"
    assert loaded.tokenizer.encode("hello") == [259]
    assert loaded.tokenizer.eos_id == 262
    assert loaded.chat.template == _TEMPLATE


def test_there_and_back_every_tensor_and_the_vocabulary_are_the_same(qwen, tmp_path):
    path, tensors = qwen(Type.F32)
    convert(path, tmp_path / "model")
    report = convert(tmp_path / "model", tmp_path / "back.gguf")
    assert (report.destination_kind, report.dtype, report.family) == ("gguf", "float32", "qwen2")
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "back.gguf")
    stored = {tensor.name: tensor for tensor in after.tensors}
    assert stored.keys() == tensors.keys()
    for tensor in before.tensors:
        assert stored[tensor.name].data.tobytes() == tensor.data.tobytes()
    for key, field in before.fields.items():
        used = slice(263) if key == "tokenizer.ggml.token_type" else slice(None)  # unused rows may be called normal ones
        if not key.startswith("GGUF."):
            assert after.fields[key].contents(used) == field.contents(used), key


def test_nothing_is_left_when_a_damaged_file_is_refused(qwen, tmp_path):
    path, _ = qwen(Type.F32)
    path.write_bytes(path.read_bytes()[:-5000])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="cut short"):
        convert(path, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before


def test_a_vocabulary_larger_than_the_embedding_is_refused(qwen, tmp_path, write_gguf):
    path, tensors = qwen(Type.F32)
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(("GGUF.", "general."))}
    keys = {key.removeprefix("qwen2."): value for key, value in keys.items()}
    short = tensors | {name: tensors[name][:100] for name in ("token_embd.weight", "output.weight")}
    with pytest.raises(ValueError, match="288 ids, but the embedding has only 100 rows"):
        convert(write_gguf("qwen2", keys, short, name="short.gguf"), tmp_path / "model")


def _description(config, tokenizer) -> ModelDescription:
    dtypes = dict.fromkeys(parameter_shapes(config), "float32")
    return ModelDescription(config=config, family=None, dtypes=dtypes, dtype=None, tokenizer=tokenizer, chat=None)


def test_a_vocabulary_smaller_than_the_table_is_filled_up_with_unused_tokens(tiny, tmp_path):
    keys = _tokenizer_keys()
    keys |= {key: keys[key][:263] for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")}
    tokenizer, _ = from_metadata(keys)
    target = open_target(tmp_path / "m.gguf", _description(dataclasses.replace(tiny("qwen2"), vocab_size=_ROWS), tokenizer))
    target.begin()
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[262:265] == ["<|im_end|>", "[PAD263]", "[PAD264]"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert len(types) == _ROWS and types[263:] == [gguf.TokenType.UNUSED] * (_ROWS - 263)
    target.abort()
    with pytest.raises(ValueError, match="the tokenizer has 263 tokens, but the embedding has only 200 rows"):
        open_target(tmp_path / "n.gguf", _description(dataclasses.replace(tiny("qwen2"), vocab_size=200), tokenizer))


def test_a_tokenizer_that_gguf_cannot_express_is_noted_and_left_out(tiny, tmp_path, monkeypatch):
    def refuse(tokenizer, chat):
        raise ValueError("it has no form in GGUF")

    monkeypatch.setattr("lmx.tokenizer.gguf.to_metadata", refuse)
    target = open_target(tmp_path / "m.gguf", _description(tiny("llama"), object()))
    assert "token ids only: it has no form in GGUF" in target.notes[-1]
    target.begin()
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.model"].contents() == "no_vocab"
    target.abort()
