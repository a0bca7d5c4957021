"""Merges of checkpoints on disk: the bits of the merge in memory, bounded memory, refusals, and the command line."""

import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import lmx
from configs.models import tiny
from lmx import cli, merging
from lmx.convert import convert
from lmx.convert.artifact import ArtifactSource
from lmx.convert.hf.source import HuggingFaceSource
from lmx.convert.merge import merge_checkpoints
from lmx.convert.source import ConversionError
from lmx.core.errors import DiskFullError
from lmx.model.config import ScalarHead
from lmx.model.decoder import build_model
from lmx.pipeline import artifact
from lmx.tokenizer.bytes import ByteTokenizer
from tests.fixtures import manifests

CONFIG = tiny.llama3(vocab_size=300, num_layers=3, model_dim=16, q_heads=1, kv_heads=1, head_dim=8, ffn_dim=16)


def save(folder, seed, config=CONFIG, dtype="float32", start=None, tokenizer=None):
    """A model artifact: random, or `start` and a small task vector."""
    random = np.random.default_rng(seed)
    shapes = build_model(config).abstract_params()
    params = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32), shapes)
    if start is not None:
        params = jax.tree.map(lambda x, d: x + 0.05 * d, start, params)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    path = epath.Path(folder)
    path.mkdir(parents=True)
    artifact.write_model(path, config=config, params=params, tokenizer=tokenizer or ByteTokenizer())
    artifact.write_manifest(path, manifests.finished(stage="sft"))
    return params


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder with the artifacts base, one, two and their Hugging Face form hf_base, hf_one, hf_two, and the parameters."""
    folder = tmp_path_factory.mktemp("models")
    base = save(folder / "base", 0)
    params = {"base": base, "one": save(folder / "one", 1, start=base), "two": save(folder / "two", 2, start=base)}
    for name in params:
        convert(folder / name, folder / f"hf_{name}")
    return folder, params


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


METHODS = {
    "mean": (merging.Mean(weights=merging.Weights(default=(0.7, 0.3))), ["--weights", "0.7,0.3"]),
    "ema": (merging.Ema(decay=0.9), ["--decay", "0.9"]),
    "liti": (merging.Liti(eta=0.4, groups={"0": 0.1, "1": 0.1}), ["--eta", "0.4", "--layer-weights", "0-1=0.1"]),
    "slerp": (
        merging.Slerp(weights=merging.Weights(default=(0.6, 0.4), groups={"embed": (1.0, 0.0)})),
        ["--weights", "0.6,0.4", "--layer-weights", "embed=1,0"],
    ),
    "warp": (merging.Slerp(eta=0.3), []),
    "arithmetic": (merging.Arithmetic(weights=merging.Weights(default=(0.8, 0.8))), ["--weights", "0.8,0.8"]),
    "ties": (merging.Ties(density=0.3, scale=0.9), ["--density", "0.3", "--scale", "0.9"]),
    "dare": (merging.Dare(density=0.4, seed=5), ["--density", "0.4", "--seed", "5"]),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_on_the_command_line_gives_the_bits_of_the_merge_in_memory(tmp_path, saved, name, monkeypatch, capsys):
    monkeypatch.setattr("lmx.checkpoint.streaming.BLOCK_ELEMENTS", 8 * 16)  # tables come in many blocks of rows
    folder, params = saved
    method, options = METHODS[name]
    models = ["one"] if name == "liti" else ["one", "two"]
    base = ["--base", str(folder / "base")] if method.needs_base else []
    paths = [str(folder / model) for model in models]
    assert cli.main(["merge", *paths, "--out", str(tmp_path / "out"), "--method", name, *base, *options]) == 0
    expected = merging.merge(method, [params[model] for model in models], params["base"] if method.needs_base else None)
    found = lmx.load(tmp_path / "out")
    same(found.params, expected)
    assert found.model.config == CONFIG and found.tokenizer.encode("ab") == ByteTokenizer().encode("ab")
    assert found.manifest.stage == "merge" and found.manifest.kind == "model"
    assert [record.source for record in found.manifest.inputs.values()] == [*paths, *base[1:]]
    assert "lmx artifact in float32" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_hugging_face_directories_give_the_same_bits_and_mix_with_artifacts(tmp_path, saved):
    folder, params = saved
    expected = merging.slerp(params["base"], [params["one"], params["two"]])
    report = merge_checkpoints([folder / "hf_one", folder / "two"], tmp_path / "hf", merging.Slerp(), base=folder / "hf_base")
    assert report.destination_kind == "hf" and (tmp_path / "hf" / "config.json").exists()
    convert(tmp_path / "hf", tmp_path / "back")
    same(lmx.load(tmp_path / "back").params, expected)
    merge_checkpoints([folder / "hf_one", folder / "hf_two"], tmp_path / "own", merging.Slerp(), base=folder / "base", to="lmx")
    same(lmx.load(tmp_path / "own").params, expected)


def test_reward_models_are_averaged_and_stay_reward_models(tmp_path):
    config = dataclasses.replace(CONFIG, head=ScalarHead())
    params = [save(tmp_path / str(seed), seed, config) for seed in range(3)]
    merge_checkpoints([tmp_path / str(seed) for seed in range(3)], tmp_path / "warm", merging.Mean())
    found = lmx.load(tmp_path / "warm")
    same(found.params, merging.warm(params))
    assert found.manifest.kind == "reward_model"


def test_the_result_has_the_dtype_of_the_first_model_or_the_one_asked_for(tmp_path, saved):
    folder, params = saved
    narrow = save(tmp_path / "narrow", 1, start=params["base"], dtype="bfloat16")
    merge_checkpoints([tmp_path / "narrow", folder / "two"], tmp_path / "first", merging.Mean())
    same(lmx.load(tmp_path / "first").params, merging.mean([narrow, params["two"]]))
    report = merge_checkpoints([tmp_path / "narrow", folder / "two"], tmp_path / "half", merging.Mean(), dtype="float16")
    wide = merging.mean([jax.tree.map(lambda x: x.astype(jnp.float32), narrow), params["two"]])
    same(lmx.load(tmp_path / "half").params, jax.tree.map(lambda x: x.astype(jnp.float16), wide))
    assert report.dtype == "float16" and not report.warnings


def peak_bytes(monkeypatch, cls, run):
    """Most bytes that were read from checkpoints of a kind and alive at once, and the largest single read."""
    alive, most, largest = [0], [0], [0]
    original = cls.read

    def read(self, *arguments):
        array = original(self, *arguments)
        size = array.nbytes
        alive[0] += size
        most[0], largest[0] = max(most[0], alive[0]), max(largest[0], size)
        weakref.finalize(array, lambda: alive.__setitem__(0, alive[0] - size))
        return array

    monkeypatch.setattr(cls, "read", read)
    run()
    return most[0], largest[0]


@pytest.mark.parametrize("method", [merging.Slerp(), merging.Ties(density=0.5)])
def test_no_more_than_a_tensor_of_each_model_is_in_memory(tmp_path, saved, monkeypatch, method):
    monkeypatch.setattr("lmx.checkpoint.streaming.BLOCK_ELEMENTS", 30 * 16)
    folder, params = saved
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params["base"]))
    for prefix, cls in (("", ArtifactSource), ("hf_", HuggingFaceSource)):
        paths = [folder / f"{prefix}{name}" for name in ("one", "two")]
        most, largest = peak_bytes(
            monkeypatch,
            cls,
            lambda paths=paths, prefix=prefix: merge_checkpoints(
                paths, tmp_path / f"{prefix}out", method, base=folder / f"{prefix}base"
            ),
        )
        assert most <= 2 * 3 * largest < total  # the next block may come before the last has been let go
        assert largest < total / 6


def test_models_of_different_architectures_are_refused_by_name(tmp_path, saved):
    folder, params = saved
    save(tmp_path / "deep", 0, dataclasses.replace(CONFIG, num_layers=2))
    with pytest.raises(
        ConversionError, match="one and .*deep are of different architectures: num_layers is 3 in the one and 2 in the"
    ):
        merge_checkpoints([folder / "one", tmp_path / "deep"], tmp_path / "out", merging.Mean())
    rope = dataclasses.replace(CONFIG.layer_pattern[0].attention.rope, theta=5.0)
    block = CONFIG.layer_pattern[0]
    block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, rope=rope))
    save(tmp_path / "turned", 0, dataclasses.replace(CONFIG, layer_pattern=(block, *CONFIG.layer_pattern[1:])))
    with pytest.raises(ConversionError, match=r"one and .*turned .*: layer_pattern\[0\].attention.rope.theta is .* and 5.0 in the"):
        merge_checkpoints([folder / "one"], tmp_path / "out", merging.Liti(eta=0.5), base=tmp_path / "turned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "turned"]


def test_only_the_length_may_differ_and_is_the_first_models(tmp_path, saved):
    folder, params = saved
    save(tmp_path / "long", 5, dataclasses.replace(CONFIG, max_length=2 * CONFIG.max_length))
    report = merge_checkpoints([folder / "one", tmp_path / "long"], tmp_path / "out", merging.Mean())
    assert any("different max_length" in note for note in report.notes)
    assert lmx.load(tmp_path / "out").model.config == CONFIG


class OtherBytes(ByteTokenizer):
    """The same ids for other text."""

    fingerprint = "other"

    def token_bytes(self, index):
        return b"?" if index == 70 else super().token_bytes(index)


def test_models_with_different_tokenizers_are_refused_by_name(tmp_path, saved, monkeypatch):
    folder, params = saved
    save(tmp_path / "other", 0)
    original = ArtifactSource.tokenizer
    monkeypatch.setattr(
        ArtifactSource, "tokenizer", lambda self: (OtherBytes(), None) if self.path.name == "other" else original(self)
    )
    with pytest.raises(ConversionError, match="models.*/one and .*/other have different tokenizers"):
        merge_checkpoints([folder / "one", tmp_path / "other"], tmp_path / "out", merging.Mean())


def test_a_merge_that_fails_midway_leaves_nothing(tmp_path, saved, monkeypatch):
    folder, params = saved
    original, seen = merging.Slerp.combine, []

    def fail(self, plan, part, block):
        seen.append(part)
        if len(seen) == 9:
            raise OSError(28, "No space left on device")
        return original(self, plan, part, block)

    monkeypatch.setattr(merging.Slerp, "combine", fail)
    with pytest.raises(DiskFullError, match="the disk is full: .*out could not be written"):
        merge_checkpoints([folder / "one", folder / "two"], tmp_path / "out", merging.Slerp(), base=folder / "base")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_warned_of_by_name(tmp_path, saved):
    folder, params = saved
    damaged = jax.tree.map(lambda x: x, params["one"])
    damaged["final_norm"]["gain"] = damaged["final_norm"]["gain"].at[0].set(jnp.nan)
    path = epath.Path(tmp_path / "nan")
    path.mkdir()
    artifact.write_model(path, config=CONFIG, params=damaged, tokenizer=ByteTokenizer())
    artifact.write_manifest(path, manifests.finished(stage="sft"))
    report = merge_checkpoints([path, folder / "two"], tmp_path / "out", merging.Mean())
    assert report.warnings == ("the tensor 'final_norm/gain' has 1 numbers that are NaN, infinite or too large for its dtype",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required"),
        (["one", "--method", "mean"], "mean of 1 model has nothing to merge; give two or more"),
        (["one", "two", "--method", "slerp"], "slerp merges task vectors: give the base"),
        (["one", "two", "--method", "mean", "--base", "base"], "mean has no use for the base"),
        (["one", "two", "--method", "mean", "--weights", "0.7,0.7"], "sum to 1.4, but must sum to 1"),
        (["one", "two", "--method", "mean", "--weights", "a,b"], "--weights takes numbers with commas"),
        (["one", "two", "--method", "mean", "--density", "0.5"], "--method mean has no use for --density; leave it out"),
        (["one", "two", "--method", "ties", "--no-rescale"], "--method ties has no use for --no-rescale; leave it out"),
        (["one", "two", "--method", "dare"], "--method dare needs --density"),
        (["one", "--method", "liti", "--eta", "1", "--layer-weights", "0=1,2"], "takes one eta for '0', not 2 numbers"),
        (["one", "two", "--method", "mean", "--layer-weights", "0-3"], "must read LAYERS=W,W,"),
        (["one", "two", "--method", "mean", "--layer-weights", "3-0=1,0"], "counts its layers backwards"),
        (["one", "two", "--method", "mean", "--layer-weights", "9=1,0"], "but the model has only the layers 0 to 2, embed"),
        (["one", "missing", "--method", "mean"], "there is no checkpoint at"),
        (["one", "two", "--method", "mean", "--out", "one"], "one exists already; remove it, or choose another name"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_a_sentence(saved, monkeypatch, capsys, options, message):
    folder, _ = saved
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    out = [] if "--out" in options else ["--out", "out"]
    if not options:
        with pytest.raises(SystemExit):
            cli.main(["merge"])
    else:
        assert cli.main(["merge", *options, *out]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before
