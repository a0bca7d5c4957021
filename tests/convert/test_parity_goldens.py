"""Imported models compute what transformers computed (recorded by tools/parity/record.py; `make parity` compares live)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import lmx
from lmx.convert import convert
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.sampling.generate import generate
from lmx.sampling.request import Sampling
from tools.parity import cases

GOLDENS = Path(__file__).parent / "goldens" / "parity"


@pytest.fixture(scope="module", params=list(cases.CASES))
def imported(request, tmp_path_factory):
    """A case's name, and its checkpoint made from the golden and imported."""
    golden = json.loads((GOLDENS / f"{request.param}.json").read_text())
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text(json.dumps(golden["config"]))
    gemma = golden["config"]["model_type"].startswith("gemma")
    tensors = {name: cases.weights(name, tuple(shape), unit_offset=gemma) for name, shape in golden["tensors"].items()}
    save_file(tensors, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert(folder / "hf", folder / "lmx")
    return request.param, golden, lmx.load(folder / "lmx")


def test_logits_of_a_ragged_batch_agree(imported):
    name, _, loaded = imported
    tokens, mask = cases.batch()
    positions = np.broadcast_to(np.arange(cases.LENGTH, dtype=np.int32), tokens.shape)
    batch = LMBatch(tokens, np.zeros_like(tokens), mask, mask.astype(np.int32), positions)
    logits = head.logits(jax.jit(loaded.model.apply)(loaded.params, batch))
    np.testing.assert_allclose(logits[mask], np.load(GOLDENS / f"{name}.npz")["logits"], atol=1e-4)


def test_greedy_continuations_agree_token_for_token(imported):
    _, golden, loaded = imported
    sampling = Sampling(max_new_tokens=cases.NEW_TOKENS, temperature=0.0, ignore_eos=True)
    completions = generate(loaded.model, loaded.params, cases.PROMPTS, sampling=sampling, eos_id=0, batch_size=2)
    assert [completion.tokens for completion in completions] == golden["greedy"]
