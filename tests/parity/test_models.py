"""lmx beside transformers, live: models come in with the same logits and greedy tokens, and go out with the same bytes."""

from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("transformers", reason="`make parity` installs it")

from safetensors.numpy import load_file

import lmx
from lmx.convert import convert
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.sampling.generate import generate
from lmx.sampling.request import Sampling
from tools.parity import cases, reference

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=list(cases.CASES))
def both(request, tmp_path_factory):
    """A folder with transformers' checkpoint `hf`, and the same imported as `lmx`; the two models."""
    folder = tmp_path_factory.mktemp(request.param)
    reference.save(cases.CASES[request.param], folder / "hf")
    convert(folder / "hf", folder / "lmx")
    return folder, reference.load(folder / "hf"), lmx.load(folder / "lmx")


def lmx_logits(loaded):
    tokens, mask = cases.batch()
    positions = np.broadcast_to(np.arange(cases.LENGTH, dtype=np.int32), tokens.shape)
    batch = LMBatch(tokens, np.zeros_like(tokens), mask, mask.astype(np.int32), positions)
    return np.asarray(head.logits(jax.jit(loaded.model.apply)(loaded.params, batch)))[mask]


def test_logits_agree(both):
    _, theirs, ours = both
    _, mask = cases.batch()
    expected = reference.logits(theirs)[mask]
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(lmx_logits(ours), expected, atol=1e-4)


def test_greedy_tokens_agree(both):
    _, theirs, ours = both
    sampling = Sampling(max_new_tokens=cases.NEW_TOKENS, temperature=0.0, ignore_eos=True)
    completions = generate(ours.model, ours.params, cases.PROMPTS, sampling=sampling, eos_id=0, batch_size=2)
    assert [completion.tokens for completion in completions] == reference.greedy(theirs)


def test_every_tensor_comes_back_with_the_same_bytes(both):
    folder, theirs, _ = both
    convert(folder / "lmx", folder / "back", to="hf")
    before, after = (tensors(folder / name) for name in ("hf", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes(), name
    np.testing.assert_array_equal(reference.logits(reference.load(folder / "back")), reference.logits(theirs))


GGUF_CASES = ("llama", "llama_tied_9_heads_over_3", "qwen2_7_heads_a_kv_head", "qwen2_tied_6_heads_a_kv_head")


def test_gguf_written_by_lmx_is_read_by_transformers_with_the_same_logits(both, request):
    folder, theirs, _ = both
    if request.node.callspec.params["both"] not in GGUF_CASES:
        pytest.skip("no GGUF of these here (experts, windows, query scale), or transformers ignores its RoPE scaling")
    convert(folder / "lmx", folder / "model.gguf", dtype="float32")
    read = reference.load(folder, gguf_file="model.gguf")
    _, mask = cases.batch()
    np.testing.assert_allclose(reference.logits(read)[mask], reference.logits(theirs)[mask], atol=1e-4)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
