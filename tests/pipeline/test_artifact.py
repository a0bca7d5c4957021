"""A finished model artifact gives back what was written, and every other folder says what is wrong with it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import lmx
from lmx.checkpoint.record import CheckpointError, DamagedError, MismatchError
from lmx.data.batches import LMBatch
from lmx.model.activation import gelu_tanh
from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, NormConfig, RopeConfig, TiedHead
from lmx.model.decoder import build_model
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact, Manifest
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = dict(
        stage="teacher",
        kind="model",
        status="finished",
        fingerprint="f" * 64,
        seed=1,
        config={"class": "X", "rate": {"float": "inf"}},
        inputs={"tokenizer": artifacts.InputRecord(source="stage tokenizer", fingerprint="0" * 64)},
        versions={"lmx": "0"},
        started="2026-01-01T00:00:00+00:00",
        metrics={"loss": 1.5, "broken": float("nan")},
    )
    return Manifest(**(values | changes))


@pytest.fixture(scope="module")
def config() -> DecoderConfig:
    norm = NormConfig(eps=1e-6)
    attention = AttentionConfig(q_heads=2, kv_heads=1, head_dim=4, rope=RopeConfig(theta=1e4))
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=8, activation=gelu_tanh), norm=norm)
    size = ByteTokenizer().vocab_size
    return DecoderConfig(
        vocab_size=size, model_dim=8, num_layers=2, layer_pattern=(block,), final_norm=norm, head=TiedHead(), max_length=8
    )


@pytest.fixture(scope="module")
def params(config: DecoderConfig) -> Any:
    return jax.jit(build_model(config).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def written(config: DecoderConfig, params: Any, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    target = epath.Path(tmp_path_factory.mktemp("written"))
    artifacts.write_model(target, config=config, params=params, tokenizer=ByteTokenizer())
    artifacts.write_manifest(target, manifest())
    return target


@pytest.fixture
def folder(written: epath.Path, tmp_path: Path) -> epath.Path:
    """A copy of the artifact that a test may spoil."""
    return epath.Path(shutil.copytree(written, tmp_path / "teacher"))


def test_load_gives_model_parameters_and_tokenizer(folder: epath.Path, config: DecoderConfig, params: Any) -> None:
    loaded = lmx.load(folder)
    assert loaded.model.config == config
    assert loaded.manifest is not None and loaded.manifest.stage == "teacher"
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded.params, params))
    tokens = np.array([loaded.tokenizer.encode("hello")], np.int32)
    batch = LMBatch(tokens, tokens, tokens > 0, np.ones_like(tokens), np.arange(tokens.size, dtype=np.int32)[None])  # type: ignore[arg-type]
    assert bool(jnp.isfinite(loaded.model.apply(loaded.params, batch).hidden).all())


def test_the_chat_format_comes_back_with_the_model_and_none_where_there_is_none(
    folder: epath.Path, config: DecoderConfig, params: Any, tmp_path: Path
) -> None:
    assert lmx.load(folder).chat is None
    target = epath.Path(tmp_path / "chat")
    chat = Chat("{{ messages[0].content }}", stop_ids=(2, 5))
    artifacts.write_model(target, config=config, params=params, tokenizer=ByteTokenizer(), chat=chat)
    artifacts.write_manifest(target, manifest())
    assert lmx.load(target).chat == chat


def test_parameters_come_back_in_the_dtype_in_which_they_were_saved(config: DecoderConfig, params: Any, tmp_path: Path) -> None:
    target = epath.Path(tmp_path)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    artifacts.write_model(target, config=config, params=params, tokenizer=ByteTokenizer())
    restored = Artifact(target).load_params()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(restored)} == {"bfloat16"}


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    before = manifest(finished="2026-01-01T00:00:01+00:00", tokens=3)
    artifacts.write_manifest(epath.Path(tmp_path), before)
    read = artifacts.read_manifest(tmp_path)
    assert repr(read) == repr(before)  # NaN is not equal to itself


def test_a_folder_that_is_no_artifact_says_so(folder: epath.Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no artifact at .*: nothing exists there"):
        lmx.load(tmp_path / "no")
    with pytest.raises(
        ValueError, match=r"is not an artifact of lmx: it has no manifest.json; it holds the artifacts teacher, name one"
    ):
        lmx.load(tmp_path)


def test_an_unfinished_stage_cannot_be_loaded(folder: epath.Path) -> None:
    artifacts.write_manifest(folder, manifest(status="running"))
    with pytest.raises(ValueError, match="the stage 'teacher' in .* has not finished"):
        lmx.load(folder)


def test_an_artifact_without_a_model_says_what_it_is(tmp_path: Path) -> None:
    artifacts.write_manifest(epath.Path(tmp_path), manifest(kind="report"))
    with pytest.raises(ValueError, match="holds no model: it is of the kind 'report'"):
        lmx.load(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Artifact(epath.Path(tmp_path)).tokenizer()


def test_missing_parameters_are_named(folder: epath.Path) -> None:
    (folder / "params").rmtree()
    with pytest.raises(FileNotFoundError, match="no parameters at .*teacher/params"):
        lmx.load(folder)


def test_truncated_parameters_are_named(folder: epath.Path) -> None:
    for file in Path(folder / "params/arrays").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((DamagedError, CheckpointError), match="teacher/params"):
        lmx.load(folder)


def test_parameters_of_another_architecture_are_named(folder: epath.Path, config: DecoderConfig) -> None:
    described = json.loads((folder / "model.json").read_text())
    described["model_dim"] = 16
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(MismatchError, match="another architecture"):
        lmx.load(folder)


def test_a_damaged_or_foreign_model_file_is_named(folder: epath.Path) -> None:
    text = (folder / "model.json").read_text()
    for damaged in (text[:50], text.replace("gelu_tanh", "os.system"), text.replace("TiedHead", "Popen")):
        (folder / "model.json").write_text(damaged)
        with pytest.raises(ValueError, match="teacher/model.json does not describe a decoder"):
            lmx.load(folder)


def test_a_digest_notices_content_names_and_sizes(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path)
    (folder / "sub").mkdir()
    seen = set()
    for name, text in [
        ("a", b"1"),
        ("a", b"2"),
        ("b", b"2"),
        ("sub/c", b""),
        ("b", b"x" * 3_000_000),
        ("b", b"x" * 2_999_999 + b"y"),
    ]:
        (folder / name).write_bytes(text)
        seen.add(artifacts.digest(folder))
    assert len(seen) == 6
    assert artifacts.digest(folder) in seen


def test_a_model_with_a_function_that_no_file_may_name_is_not_written(config: DecoderConfig, params: Any, tmp_path: Path) -> None:
    block = dataclasses.replace(config.layer_pattern[0], ffn=FFNConfig(ffn_dim=8, activation=jnp.tanh))
    with pytest.raises(ValueError, match="layer_pattern.0.ffn.activation: tanh is not one of"):
        artifacts.write_model(
            epath.Path(tmp_path),
            config=dataclasses.replace(config, layer_pattern=(block,)),
            params=params,
            tokenizer=ByteTokenizer(),
        )
    assert not list(tmp_path.iterdir())
