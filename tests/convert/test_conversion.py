"""One conversion as a whole: kinds, refusals, nothing half done under the final name, and the command line."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import lmx
from configs.models import tiny
from lmx import cli
from lmx.checkpoint.record import DamagedError
from lmx.convert import convert
from lmx.convert.conversion import source_kind
from lmx.convert.source import ConversionError
from lmx.core.errors import DiskFullError
from lmx.model.decoder import build_model
from lmx.pipeline import artifact
from lmx.tokenizer.bytes import ByteTokenizer
from tests.fixtures import hf_checkpoints, manifests


@pytest.fixture
def source(tmp_path):
    config = hf_checkpoints.config("llama")
    return hf_checkpoints.save(tmp_path / "hf", config, hf_checkpoints.tensors(config))


def model_artifact(folder, config=None, tokenizer=True):
    """What a training stage leaves."""
    config = tiny.llama3(vocab_size=300, num_layers=2, model_dim=32, q_heads=2, kv_heads=1) if config is None else config
    generator = np.random.default_rng(0)
    shapes = build_model(config).abstract_params()
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape), jnp.float32), shapes)
    path = epath.Path(folder)
    path.mkdir(parents=True)
    artifact.write_model(path, config=config, params=params, tokenizer=ByteTokenizer())
    if not tokenizer:
        (path / "tokenizer").rmtree()
    artifact.write_manifest(path, manifests.finished(stage="pretrain"))
    return path, params


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_kind_of_a_path_is_inferred(tmp_path, source):
    assert source_kind(source) == "hf"
    path, _ = model_artifact(tmp_path / "stage")
    assert source_kind(tmp_path / "stage") == "lmx"
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    assert source_kind(tmp_path / "meta") == "meta"
    (tmp_path / "x.gguf").write_bytes(b"")
    assert source_kind(tmp_path / "x.gguf") == "gguf"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        source_kind(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="is no checkpoint that lmx converts: expected"):
        source_kind(tmp_path / "empty")
    (tmp_path / "x.gguf").rename(tmp_path / "empty" / "x.gguf")
    with pytest.raises(ConversionError, match="is a directory with a GGUF file; name the file .*x.gguf"):
        source_kind(tmp_path / "empty")


def test_a_trained_stage_goes_out_and_comes_back(tmp_path):
    path, params = model_artifact(tmp_path / "stage")
    report = convert(path, tmp_path / "hf")
    assert (report.source_kind, report.destination_kind, report.family) == ("lmx", "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "back")
    back = lmx.load(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    text = "bytes: \u00e9\n"
    assert back.tokenizer.encode(text) == ByteTokenizer().encode(text) and back.tokenizer.eos_id == ByteTokenizer().eos_id
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (
        config["eos_token_id"]
        == ByteTokenizer().eos_id
        == json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    )


def test_large_saved_parameters_are_read_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr("lmx.checkpoint.parameters._CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr("lmx.checkpoint.streaming._UNCACHED_BYTES", 0)
    path, params = model_artifact(tmp_path / "stage")
    convert(path, tmp_path / "copy", to="lmx")
    jax.tree.map(np.testing.assert_array_equal, lmx.load(tmp_path / "copy").params, params)


def test_the_dtype_asked_for_is_written(tmp_path):
    path, params = model_artifact(tmp_path / "stage")
    for dtype in ("bfloat16", "float16"):
        convert(path, tmp_path / f"hf-{dtype}", dtype=dtype)
        assert {form[0] for form in hf_checkpoints.load_all(tmp_path / f"hf-{dtype}").values()} == {
            "BF16" if dtype == "bfloat16" else "F16"
        }
        convert(path, tmp_path / dtype, to="lmx", dtype=dtype)
        cast = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(jnp.dtype(dtype)), params)
        jax.tree.map(np.testing.assert_array_equal, lmx.load(tmp_path / dtype).params, cast)
    with pytest.raises(ConversionError, match="q8_0 is none of"):
        convert(path, tmp_path / "no", dtype="q8_0")
    with pytest.raises(ConversionError, match="lmx writes lmx, hf, gguf, not 'onnx'"):
        convert(path, tmp_path / "no", to="onnx")


def test_numbers_that_are_not_finite_or_too_large_are_warned_of_by_name(tmp_path):
    config = hf_checkpoints.config("llama")
    tensors = hf_checkpoints.tensors(config)
    tensors["model.norm.weight"][[1, 2]] = [np.nan, np.inf]
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e6
    path = hf_checkpoints.save(tmp_path / "hf", config, tensors)
    report = convert(path, tmp_path / "lmx", dtype="float16")
    assert sorted(report.warnings) == [
        "the tensor 'model.layers.2.mlp.up_proj.weight' has 1 numbers that are too large for float16",
        "the tensor 'model.norm.weight' has 2 numbers that are NaN or infinite",
    ]
    assert any(line.startswith("warning: the tensor 'model.norm.weight'") for line in report.lines())


def test_an_existing_destination_is_left_alone(tmp_path, source):
    (tmp_path / "here").mkdir()
    with pytest.raises(FileExistsError, match="here exists already; remove it, or choose another name"):
        convert(source, tmp_path / "here")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="link exists already"):
        convert(source, tmp_path / "link")
    assert names(tmp_path) == ["here", "hf", "link"] and not names(tmp_path / "here")


@pytest.mark.parametrize("to", ["lmx", "hf"])
def test_a_conversion_that_fails_midway_leaves_nothing(tmp_path, source, monkeypatch, to):
    seen = []

    def fail(tensor, largest):
        seen.append(names(tmp_path))
        if len(seen) == 9:
            raise OSError(28, "No space left on device")
        return 0, 0

    monkeypatch.setattr("lmx.convert.transfer._count_bad", fail)
    with pytest.raises(DiskFullError, match="the disk is full: .*out could not be written; free some space"):
        convert(source, tmp_path / "out", to=to)
    assert names(tmp_path) == ["hf"]
    assert seen[0] == [f".out.{os.getpid()}.partial", "hf"]  # it was written beside the destination


def test_too_little_space_is_said_before_anything_is_written(tmp_path, source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFullError, match="has 1e-06 GB left, but about 0.0673 GB are needed"):
        convert(source, tmp_path / "out")
    assert names(tmp_path) == ["hf"]


def test_a_killed_conversion_leaves_nothing_under_the_final_name(tmp_path, source):
    code = (
        "import sys, time\nfrom lmx.convert import conversion, transfer\n"
        "transfer._count_bad = lambda *a: (print('at work', flush=True), time.sleep(60))\n"
        "conversion.convert(sys.argv[1], sys.argv[2])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, source, tmp_path / "out"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"at work\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert names(tmp_path) == [f".out.{child.pid}.partial", "hf"]
    report = convert(source, tmp_path / "out")
    assert any(f".out.{child.pid}.partial is what an interrupted conversion left" in note for note in report.notes)
    assert artifact.open_finished(tmp_path / "out").has_model()


def test_an_unfinished_or_damaged_artifact_is_refused(tmp_path):
    path, _ = model_artifact(tmp_path / "stage")
    record = path / "params" / "record" / "metadata"
    value = json.loads(record.read_text())
    value["arrays"]["blocks/0/ffn/up/kernel"]["digest"] ^= 1
    record.write_text(json.dumps(value))
    with pytest.raises(DamagedError, match="the values of blocks/0/ffn/up/kernel are not those that were saved"):
        convert(path, tmp_path / "out")
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="is not an artifact of lmx"):
        convert(path, tmp_path / "out")
    assert names(tmp_path) == ["stage"]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    path, _ = model_artifact(tmp_path / "stage", tiny.llama3(vocab_size=200, num_layers=2, model_dim=32, q_heads=2, kv_heads=1))
    with pytest.raises(ConversionError, match=r"the tokenizer of .*stage has \d+ ids, but the embedding has only 200 rows"):
        convert(path, tmp_path / "out")


def test_a_model_without_a_tokenizer_goes_through(tmp_path):
    path, _ = model_artifact(tmp_path / "stage", tokenizer=False)
    report = convert(path, tmp_path / "hf")
    assert "the source has no tokenizer, and so the directory has none" in report.notes
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    convert(tmp_path / "hf", tmp_path / "back")
    assert not artifact.open_finished(tmp_path / "back").has_tokenizer()


def test_the_files_of_the_source_come_back_as_they_were(tmp_path):
    path, _ = model_artifact(tmp_path / "stage")
    convert(path, tmp_path / "hf")
    generation = {"eos_token_id": ByteTokenizer().eos_id, "temperature": 0.7}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(generation))
    kept = {
        file: (tmp_path / "hf" / file).read_bytes()
        for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    convert(tmp_path / "hf", tmp_path / "lmx")
    convert(tmp_path / "lmx", tmp_path / "back")
    assert {file: (tmp_path / "back" / file).read_bytes() for file in kept} == kept


def test_the_command_line_converts_and_reports(tmp_path, source, capsys):
    assert cli.main(["convert", str(source), str(tmp_path / "lmx")]) == 0
    out = capsys.readouterr().out
    assert f"{source}: Hugging Face directory of the family llama, 39 tensors, 52,236 parameters" in out
    assert f"{tmp_path / 'lmx'}: lmx artifact in float32; " in out
    assert cli.main(["convert", str(source), str(tmp_path / "lmx")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"lmx: {tmp_path / 'lmx'} exists already; remove it, or choose another name\n"
    assert cli.main(["convert", str(tmp_path / "lmx"), str(tmp_path / "back"), "--to", "hf", "--dtype", "bfloat16"]) == 0
    assert "Hugging Face directory in bfloat16" in capsys.readouterr().out


def test_remote_paths_are_refused(source):
    with pytest.raises(ConversionError, match="gs://bucket/x is remote"):
        convert(source, "gs://bucket/x")
