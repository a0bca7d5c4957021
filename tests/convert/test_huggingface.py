"""Hugging Face directories in and out, written and read by the safetensors library."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

import lmx
from lmx.convert import convert
from lmx.convert.hf.target import HuggingFaceTarget
from lmx.convert.source import ConversionError
from lmx.pipeline import artifact
from tests.fixtures import hf_checkpoints

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def checkpoint(folder, name, *, dtype=np.float32, shards=1, arrays=None, change=None, **fields):
    """A directory, and its tensors; `change` may edit them."""
    values = {key: value for key, value in {**hf_checkpoints.config(name), **fields}.items() if value is not ...}
    tensors = hf_checkpoints.tensors(values, dtype) if arrays is None else arrays
    if change is not None:
        change(tensors)
    return hf_checkpoints.save(folder / "hf", values, tensors, shards=shards), tensors


def params_of(path):
    return artifact.open_finished(path).load_params()


def contents(tensors):
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return {name: (names[array.dtype.name], array.shape, array.tobytes()) for name, array in tensors.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", hf_checkpoints.CONFIGS)
def test_there_and_back_every_tensor_has_the_same_bytes(tmp_path, name, dtype):
    source, tensors = checkpoint(tmp_path, name, dtype=dtype, shards=3)
    report = convert(source, tmp_path / "lmx")
    assert report.dtype == np.dtype(dtype).name and report.tensors == len(tensors) and not report.warnings
    convert(tmp_path / "lmx", tmp_path / "back")
    assert hf_checkpoints.load_all(tmp_path / "back") == contents(tensors)
    if dtype is np.float32:
        convert(tmp_path / "back", tmp_path / "again")
        first, second = params_of(tmp_path / "lmx"), params_of(tmp_path / "again")
        jax.tree.map(np.testing.assert_array_equal, first, second)
        assert artifact.open_finished(tmp_path / "again").model_config() == artifact.open_finished(tmp_path / "lmx").model_config()


def test_each_tensor_lies_where_the_model_reads_it(tmp_path):
    source, tensors = checkpoint(tmp_path, "qwen2_moe", shards=2)
    convert(source, tmp_path / "lmx")
    params = params_of(tmp_path / "lmx")
    for layer in range(4):  # a pattern of four layers, so each place has one repeat
        block, at = params["blocks"][str(layer)], f"model.layers.{layer}"
        q = np.asarray(block["attention"]["q"]["kernel"][0])
        assert q.shape == (36, 9, 4)
        np.testing.assert_array_equal(q[:, 2, 1], tensors[f"{at}.self_attn.q_proj.weight"][2 * 4 + 1])
        o = np.asarray(block["attention"]["o"]["kernel"][0])
        np.testing.assert_array_equal(o[2, 1], tensors[f"{at}.self_attn.o_proj.weight"][:, 2 * 4 + 1])
        np.testing.assert_array_equal(block["attention"]["k"]["bias"][0].reshape(-1), tensors[f"{at}.self_attn.k_proj.bias"])
        np.testing.assert_array_equal(block["ffn_norm"]["gain"][0], tensors[f"{at}.post_attention_layernorm.weight"])
    experts = params["blocks"]["1"]["ffn"]
    np.testing.assert_array_equal(experts["experts"]["down"][0, 5], tensors["model.layers.1.mlp.experts.5.down_proj.weight"].T)
    np.testing.assert_array_equal(experts["router"]["kernel"][0], tensors["model.layers.1.mlp.gate.weight"].T)
    np.testing.assert_array_equal(
        params["blocks"]["0"]["ffn"]["gate"]["kernel"][0], tensors["model.layers.0.mlp.gate_proj.weight"].T
    )
    np.testing.assert_array_equal(params["head"]["table"], tensors[HEAD])


def test_the_artifact_opens_and_says_where_it_came_from(tmp_path):
    source, _ = checkpoint(tmp_path, "llama_tied")
    convert(source, tmp_path / "lmx", dtype="bfloat16")
    loaded = lmx.load(tmp_path / "lmx")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(ml_dtypes.bfloat16)}
    manifest = loaded.manifest
    assert (manifest.stage, manifest.kind, manifest.status) == ("convert", "model", "finished")
    assert manifest.inputs["source"].source == str(source) and len(manifest.inputs["source"].fingerprint) == 64
    assert manifest.config["source_kind"] == "hf" and manifest.config["dtype"] == "bfloat16" and manifest.seconds() >= 0
    with pytest.raises(ValueError, match="lmx holds no tokenizer, so its model works on token ids only"):
        loaded.tokenizer.encode("text")


def test_fused_experts_are_cut_into_the_experts(tmp_path):
    plain, tensors = checkpoint(tmp_path / "plain", "qwen2_moe", dtype=ml_dtypes.bfloat16)

    def fuse(arrays):
        for layer in (1,):
            at = f"model.layers.{layer}.mlp.experts"
            parts = {part: [arrays.pop(f"{at}.{e}.{part}_proj.weight") for e in range(6)] for part in ("gate", "up", "down")}
            arrays[f"{at}.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)])
            arrays[f"{at}.down_proj"] = np.stack(parts["down"])

    fused, _ = checkpoint(tmp_path / "fused", "qwen2_moe", dtype=ml_dtypes.bfloat16, change=fuse)
    convert(fused, tmp_path / "lmx")
    convert(tmp_path / "lmx", tmp_path / "back")
    assert hf_checkpoints.load_all(tmp_path / "back") == contents(tensors)
    assert plain != fused


def test_a_tied_head_that_is_stored_too_is_a_copy_or_an_error(tmp_path):
    def copy(arrays):
        arrays[HEAD] = arrays[EMBEDDING].copy()

    source, tensors = checkpoint(tmp_path / "same", "llama_tied", change=copy)
    report = convert(source, tmp_path / "lmx")
    assert any("not used, it is a copy of the embedding: lm_head.weight" in note for note in report.notes)
    np.testing.assert_array_equal(params_of(tmp_path / "lmx")["embed"]["table"], tensors[EMBEDDING])

    def differ(arrays):
        copy(arrays)
        arrays[HEAD][50, 3] += 1

    source, _ = checkpoint(tmp_path / "other", "llama_tied", change=differ)
    with pytest.raises(ConversionError, match="lm_head.weight differs from model.embed_tokens.weight .* set tie_word_embeddings"):
        convert(source, tmp_path / "refused")

    def move(arrays):
        arrays[HEAD] = arrays.pop(EMBEDDING)

    source, tensors = checkpoint(tmp_path / "moved", "llama_tied", change=move)
    convert(source, tmp_path / "moved_lmx")
    np.testing.assert_array_equal(params_of(tmp_path / "moved_lmx")["embed"]["table"], tensors[HEAD])


def test_vocabularies_padded_in_one_place_only_are_settled_and_said(tmp_path):
    def settle(folder, name, embedding_rows, head_rows, vocab_size):
        def change(arrays):
            generator = np.random.default_rng(3)
            arrays[EMBEDDING] = generator.standard_normal((embedding_rows, 36)).astype(np.float32)
            arrays[HEAD] = generator.standard_normal((head_rows, 36)).astype(np.float32)
            if name == "llama_tied":
                arrays[HEAD][: min(embedding_rows, head_rows)] = arrays[EMBEDDING][: min(embedding_rows, head_rows)]

        source, tensors = checkpoint(tmp_path / folder, name, change=change, vocab_size=vocab_size)
        report = convert(source, tmp_path / folder / "lmx")
        return report, params_of(tmp_path / folder / "lmx"), tensors

    # The tables lack the padding that the config announces.
    report, params, tensors = settle("lacking", "llama", 97, 97, 128)
    assert params["embed"]["table"].shape == (97, 36)
    assert any("says vocab_size=128, but the tables have 97 rows" in note for note in report.notes)
    # Only the head is padded: rows of zeros for tokens that are never read change no output.
    report, params, tensors = settle("head", "llama", 97, 104, 97)
    np.testing.assert_array_equal(params["embed"]["table"], np.concatenate([tensors[EMBEDDING], np.zeros((7, 36))]))
    np.testing.assert_array_equal(params["head"]["table"], tensors[HEAD])
    assert any("has 97 rows and lm_head.weight 104: the embedding is filled with rows of zeros to 104" in n for n in report.notes)
    # Only the embedding is padded: a token that can be no output has no use.
    report, params, tensors = settle("embedding", "llama", 104, 97, 97)
    np.testing.assert_array_equal(params["embed"]["table"], tensors[EMBEDDING][:97])
    assert any("the embedding is cut" in note for note in report.notes)
    # Tied and stored twice, one copy padded: the longer is the table.
    _, params, tensors = settle("tied", "llama_tied", 97, 104, 104)
    np.testing.assert_array_equal(params["embed"]["table"], tensors[HEAD])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.3.mlp.up_proj.weight"),
            "has no tensor 'model.layers.3.mlp.up_proj.weight', which blocks/0/ffn/up",
        ),
        (lambda t: t.pop(EMBEDDING), "has no tensor 'model.embed_tokens.weight'"),
        (lambda t: t.update({"model.layers.0.extra": np.zeros(3, np.float32)}), "has the tensor 'model.layers.0.extra', which"),
        (lambda t: t.update({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}), "has the tensor 'a' and 1 more, which"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(35, np.float32)}),
            r"has the shape \[35\], but its config asks for \[36\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.zeros(36, np.int8)}), "is I8; weights must be float32, float16, bfloat16"),
        (lambda t: t.update({"model.norm.weight": np.zeros(36, np.float64)}), "is F64; weights must be"),
    ],
)
def test_tensors_that_are_missing_superfluous_or_of_another_form_are_named(tmp_path, change, message):
    source, _ = checkpoint(tmp_path, "llama", change=change)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(source, tmp_path / "lmx")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 2**31 - 1}, "hidden_size=2147483647, but no tensor of the checkpoint has more than 97 rows or columns"),
        ({"num_attention_heads": 2**30, "num_key_value_heads": 2**30, "head_dim": 2**30}, "head_dim=1152921504606846976, but no"),
        ({"intermediate_size": 2**31 - 1}, "intermediate_size=2147483647, but no tensor"),
        ({"num_hidden_layers": 39}, "has no tensor 'model.layers.4.self_attn.k_proj.weight'"),
        ({"num_hidden_layers": 40}, "num_hidden_layers=40, but the checkpoint has only 39 tensors"),
    ],
)
def test_sizes_that_the_checkpoint_does_not_have_cost_no_memory(tmp_path, fields, message):
    source, _ = checkpoint(tmp_path, "llama", arrays=hf_checkpoints.tensors(hf_checkpoints.config("llama")), **fields)
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "lmx")


def test_buffers_that_the_config_determines_are_listed_and_not_used(tmp_path):
    def change(arrays):
        for layer in range(4):
            arrays[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    source, _ = checkpoint(tmp_path, "llama", change=change)
    report = convert(source, tmp_path / "lmx")
    assert any("4 tensors not used, the config determines it: model.layers.0" in note for note in report.notes)


def test_the_bare_model_without_its_prefix_is_read(tmp_path):
    def strip(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("model.")] = arrays.pop(name)

    source, tensors = checkpoint(tmp_path, "llama_tied", change=strip, architectures=["LlamaModel"])
    convert(source, tmp_path / "lmx")
    np.testing.assert_array_equal(params_of(tmp_path / "lmx")["embed"]["table"], tensors["embed_tokens.weight"])


def test_mixed_dtypes_become_the_one_that_holds_them_all(tmp_path):
    def change(arrays):
        arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.float32) + np.float32(1e-6)

    source, tensors = checkpoint(tmp_path, "llama", dtype=ml_dtypes.bfloat16, change=change)
    report = convert(source, tmp_path / "lmx")
    assert report.dtype == "float32" and any("the source mixes bfloat16, float32" in note for note in report.notes)
    np.testing.assert_array_equal(params_of(tmp_path / "lmx")["final_norm"]["gain"], tensors["model.norm.weight"])
    report = convert(source, tmp_path / "copy", to="hf")
    assert hf_checkpoints.load_all(tmp_path / "copy") == contents(tensors)


def edit_index(source, **weight_map):
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= weight_map
    path.write_text(json.dumps(index))


def test_an_index_that_lies_is_refused(tmp_path):
    def fresh(name):
        return checkpoint(tmp_path / name, "llama", shards=2)[0]

    for number, file in enumerate(
        ["../hf/model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 3, ""]
    ):
        source = fresh(f"outside{number}")
        edit_index(source, **{EMBEDDING: file})
        with pytest.raises(ConversionError, match="only safetensors files in the same directory are read|which is no name"):
            convert(source, tmp_path / "lmx")
    source = fresh("missing")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConversionError, match="names the file model-00002-of-00002.safetensors, which is missing"):
        convert(source, tmp_path / "lmx")
    source = fresh("absent")
    edit_index(source, nothing="model-00001-of-00002.safetensors")
    with pytest.raises(
        ConversionError, match="says that model-00001-of-00002.safetensors has the tensor 'nothing', but it has not"
    ):
        convert(source, tmp_path / "lmx")
    source, tensors = checkpoint(tmp_path / "twice", "llama", shards=2)
    hf_checkpoints.save_file(source / "third.safetensors", {"model.norm.weight": tensors["model.norm.weight"]})
    edit_index(source, **{"model.norm.weight": "third.safetensors"})
    with pytest.raises(
        ConversionError, match="has the tensor 'model.norm.weight', which model.safetensors.index.json does not name"
    ):
        convert(source, tmp_path / "lmx")
    source = fresh("empty")
    (source / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match="must have a weight_map"):
        convert(source, tmp_path / "lmx")
    assert not (tmp_path / "lmx").exists()


def test_the_same_tensor_in_two_files_is_refused(tmp_path):
    source, tensors = checkpoint(tmp_path, "llama", shards=2)
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in set(index.values()) if file != index[EMBEDDING])
    names = [name for name in index if index[name] == other]
    hf_checkpoints.save_file(source / other, {name: tensors[name] for name in (*names, EMBEDDING)})
    text = json.dumps({"weight_map": index})[:-2] + f', "{EMBEDDING}": "{other}"}}}}'
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConversionError, match="'model.embed_tokens.weight' stands there twice"):
        convert(source, tmp_path / "lmx")


def test_directories_without_readable_weights_say_what_to_do(tmp_path):
    source, _ = checkpoint(tmp_path, "llama")
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    with pytest.raises(ConversionError, match="neither model.safetensors nor model.safetensors.index.json; fetch the index"):
        convert(source, tmp_path / "lmx")
    (source / "model-00001-of-00002.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="PyTorch pickles only, which can run code .* save the model as safetensors"):
        convert(source, tmp_path / "lmx")
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        convert(source, tmp_path / "lmx")


def test_files_that_are_links_are_followed_as_the_hub_lays_them_out(tmp_path):
    source, _ = checkpoint(tmp_path, "llama")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(source.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    convert(source, tmp_path / "lmx")
    assert artifact.open_finished(tmp_path / "lmx").has_model()


def test_large_exports_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    source, tensors = checkpoint(tmp_path, "qwen2", dtype=ml_dtypes.bfloat16)
    monkeypatch.setattr("lmx.convert.hf.target.SHARD_BYTES", 20_000)
    convert(source, tmp_path / "copy", to="hf")
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "copy").glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert hf_checkpoints.load_all(tmp_path / "copy") == contents(tensors)
    assert all((tmp_path / "copy" / file).stat().st_size < 25_000 for file in files)


def test_the_written_config_has_the_keys_of_both_generations(tmp_path):
    source, _ = checkpoint(tmp_path, "qwen2", dtype=ml_dtypes.bfloat16)
    convert(source, tmp_path / "copy", to="hf")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e3
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"] == "yarn"
    assert config["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"] * 2 and config["max_window_layers"] == 2
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["model_type"] == "qwen2"
    assert HuggingFaceTarget.kind == "hf"
