"""Meta's layout against the rotation and the config that it stands for."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import lmx
from lmx.convert import convert, transfer
from lmx.convert.meta.source import open_source
from lmx.convert.source import ConversionError
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.model.config import LinearHead, Llama3Scaling, TiedHead
from lmx.model.decoder import build_model

_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 8


def _load(source):
    transfer.check(source)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), build_model(source.config).abstract_params())
    for rule in source.rules:
        leaf = params
        for key in rule.place.leaf.split("/"):
            leaf = leaf[key]
        leaf[rule.place.indices] = rule.to_lmx(source.read(rule.name))
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(params))
    return params


def _reference_logits(tensors, tokens: np.ndarray, theta: float) -> np.ndarray:
    """Llama in float64 as Meta's code computes it: neighbouring numbers of a head are a complex number, turned by its angle."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    length = len(tokens)
    angles = np.outer(np.arange(length), theta ** (-np.arange(0, _HEAD_DIM, 2) / _HEAD_DIM))
    turn = np.exp(1j * angles)[:, None, :]  # [T, 1, H / 2]

    def rotate(x, heads):
        pairs = x.reshape(length, heads, _HEAD_DIM // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(length, heads, _HEAD_DIM)

    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(2):
        at = f"layers.{layer}."
        h = norm(x, weights[f"{at}attention_norm.weight"])
        q = rotate(h @ weights[f"{at}attention.wq.weight"].T, _HEADS)
        k = rotate(h @ weights[f"{at}attention.wk.weight"].T, _KV_HEADS).repeat(_HEADS // _KV_HEADS, 1)
        v = (h @ weights[f"{at}attention.wv.weight"].T).reshape(length, _KV_HEADS, _HEAD_DIM).repeat(_HEADS // _KV_HEADS, 1)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(_HEAD_DIM)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", probs / probs.sum(-1, keepdims=True), v).reshape(length, -1)
        x = x + mixed @ weights[f"{at}attention.wo.weight"].T
        h = norm(x, weights[f"{at}ffn_norm.weight"])
        gate = h @ weights[f"{at}feed_forward.w1.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ weights[f"{at}feed_forward.w3.weight"].T))
            @ weights[f"{at}feed_forward.w2.weight"].T
        )
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def test_logits_are_those_of_the_complex_rotation(meta_model, meta_directory):
    tensors = meta_model()
    source = open_source(meta_directory(tensors))
    params = _load(source)
    tokens = np.random.default_rng(0).integers(0, 40, (1, 12)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = LMBatch(
        tokens=tokens, labels=tokens, loss_mask=ones > 0, segment_ids=ones, positions=np.arange(12, dtype=np.int32)[None]
    )
    logits = head.logits(jax.jit(build_model(source.config).apply)(params, batch))
    np.testing.assert_allclose(logits[0], _reference_logits(tensors, tokens[0], 500_000.0), atol=2e-5)
    source.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_a_model_cut_over_several_files_is_put_together(meta_model, meta_directory, dtype, embedding_axis):
    tensors = meta_model(dtype)
    source = open_source(meta_directory(tensors, parts=2, embedding_axis=embedding_axis))
    assert source.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert (source.tensors[name].shape, source.tensors[name].dtype) == (values.shape, dtype)
        np.testing.assert_array_equal(source.read(name), values)
        np.testing.assert_array_equal(source.read(name, 1, len(values) - 1), values[1:-1])
    assert source.ignored == {"rope.freqs": "the config determines it"}
    transfer.check(source)
    source.close()


def test_safetensors_are_read_in_the_place_of_torch_files(meta_model, meta_directory, tmp_path):
    tensors = meta_model("bfloat16")
    folder = meta_directory(tensors)
    (folder / "consolidated.00.pth").unlink()
    save_file(tensors, folder / "consolidated.safetensors")
    source = open_source(folder)
    for name, values in tensors.items():
        np.testing.assert_array_equal(source.read(name, 0, 3), values[:3])
    _load(source)
    source.close()


def test_the_vocabulary_of_llama_2_is_that_of_its_table(meta_model, meta_directory):
    source = open_source(meta_directory(meta_model(), vocab_size=-1, rope_theta=None))
    assert (source.config.vocab_size, source.config.max_length) == (40, 4096)
    assert source.config.layer_pattern[0].attention.rope.theta == 10_000.0
    assert "so max_length=4,096" in source.notes[-1]
    source.close()


def test_llama_3_1_and_later_scale_their_rope(meta_model, meta_directory):
    source = open_source(meta_directory(meta_model(), use_scaled_rope=True))
    assert source.config.layer_pattern[0].attention.rope.scaling == Llama3Scaling()
    assert source.config.max_length == 131_072
    source.close()
    stated = {"use_scaled_rope": True, "rope_scaling_factor": 32.0, "high_freq_factor": 3.0, "max_seq_len": 64}
    source = open_source(meta_directory(meta_model(), **stated))
    assert source.config.layer_pattern[0].attention.rope.scaling == Llama3Scaling(factor=32.0, high_frequency_factor=3.0)
    assert (source.config.max_length, source.notes) == (64, ())
    source.close()


def test_an_output_that_is_the_embedding_makes_a_tied_head(meta_model, meta_directory, torch_format):
    tensors = meta_model(tied=True)
    folder = meta_directory(tensors)
    source = open_source(folder)
    assert isinstance(source.config.head, TiedHead)
    _load(source)
    source.close()
    shared = tensors | {"output.weight": tensors["tok_embeddings.weight"]}
    keys = {name: str(index) for index, name in enumerate(tensors)} | {"output.weight": "0"}
    (folder / "consolidated.00.pth").write_bytes(torch_format.checkpoint(shared, keys))
    source = open_source(folder)
    assert isinstance(source.config.head, TiedHead)
    assert source.ignored["output.weight"] == "it is the embedding"
    _load(source)
    source.close()
    source = open_source(meta_directory(meta_model()))
    assert isinstance(source.config.head, LinearHead)
    source.close()


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"dim": None}, "lacks the field dim"),
        ({"dim": 64}, r"tok_embeddings.weight of the shape \(40, 64\)"),
        ({"n_heads": 8, "head_dim": 8}, r"wq.weight of the shape \(64, 32\)"),
        ({"n_heads": 3, "head_dim": 8}, "must be a multiple of kv_heads=2|shape"),
        ({"multiple_of": 256}, r"w1.weight of the shape \(256, 32\)"),
        ({"n_layers": 1_000_000}, "holds only 22 tensors"),
        ({"vocab_size": 41}, "says vocab_size=41, but tok_embeddings.weight has 40 rows"),
        ({"norm_eps": 0}, "norm_eps=0"),
        ({"moe_args": {"num_experts": 8}}, "moe_args"),
        ({"quantization_args": {"scheme": "int8"}}, "quantization_args"),
        ({"sliding_window": 4096}, "sliding_window"),
    ],
)
def test_params_that_contradict_the_tensors_or_ask_for_more_are_refused(meta_model, meta_directory, params, sentence):
    with pytest.raises(ConversionError, match=sentence) as caught:
        open_source(meta_directory(meta_model(), **params))
    assert "params.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_files_that_do_not_fit_together_are_named(meta_model, meta_directory, torch_format):
    tensors = meta_model()
    folder = meta_directory(tensors, parts=2)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(ConversionError, match="some are missing; 2 are there"):
        open_source(folder)
    folder = meta_directory(tensors, parts=2)
    (folder / "consolidated.02.pth").unlink()
    (folder / "consolidated.01.pth").write_bytes(torch_format.checkpoint(tensors))
    with pytest.raises(ConversionError, match="its part of"):
        open_source(folder)
    (folder / "consolidated.01.pth").write_bytes(torch_format.checkpoint({"norm.weight": tensors["norm.weight"]}))
    with pytest.raises(ConversionError, match="do not hold parts of the same tensors"):
        open_source(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="neither consolidated.safetensors nor consolidated.00.pth"):
        open_source(folder)


def test_files_that_disagree_on_what_each_holds_whole_are_refused(meta_model, meta_directory, torch_format):
    tensors = meta_model()
    folder = meta_directory(tensors, parts=2)
    data = (folder / "consolidated.01.pth").read_bytes()
    norm = tensors["norm.weight"].tobytes()
    (folder / "consolidated.01.pth").write_bytes(data.replace(norm, norm[::-1]))
    source = open_source(folder)
    with pytest.raises(ConversionError, match="different numbers for 'norm.weight'"):
        source.read("norm.weight")
    source.close()


def test_a_missing_tensor_is_named(meta_model, meta_directory):
    tensors = meta_model()
    del tensors["layers.1.attention.wo.weight"]
    source = open_source(meta_directory(tensors))
    with pytest.raises(ConversionError, match="layers.1.attention.wo.weight"):
        transfer.check(source)
    source.close()


def test_a_directory_becomes_an_artifact_in_the_dtype_of_the_checkpoint(meta_model, meta_directory, tmp_path):
    tensors = meta_model("bfloat16")
    report = convert(meta_directory(tensors, parts=2), tmp_path / "model")
    assert (report.source_kind, report.family, report.dtype, report.tensors) == ("meta", "llama", "bfloat16", len(tensors) - 1)
    params = lmx.load(tmp_path / "model").params
    np.testing.assert_array_equal(params["head"]["table"], tensors["output.weight"])
    up = tensors["layers.1.feed_forward.w3.weight"].T
    np.testing.assert_array_equal(params["blocks"]["0"]["ffn"]["up"]["kernel"][1], up)
