"""Merges against mergekit 0.1.5, where the method is the same: goldens that tools/record_merge_goldens.py recorded.

mergekit takes shares and angles of each tensor. Its SLERP runs on raw weights, which is lmx's with a base of zeros.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lmx.merging import Arithmetic, Dare, Slerp, Ties, Weights, merge

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "mergekit.json").read_text())
BASE, *MODELS = ({"w": jnp.asarray(np.reshape(x, GOLDEN["shape"]), jnp.float32)} for x in GOLDEN["inputs"])
WEIGHTS = Weights(default=tuple(GOLDEN["weights"]))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("task_arithmetic", Arithmetic(weights=WEIGHTS)),
        ("ties", Ties(density=0.4, by="tensor")),
        ("ties_weighted", Ties(density=0.4, by="tensor", weights=WEIGHTS, scale=0.7)),
        ("dare_ties_all_kept", Dare(density=1.0, combine_by="elect", weights=WEIGHTS)),
    ],
)
def test_merges_of_task_vectors_are_those_of_mergekit(name, method):
    expected = np.reshape(GOLDEN["results"][name], GOLDEN["shape"])
    np.testing.assert_allclose(merge(method, MODELS, BASE)["w"], expected, rtol=1e-6, atol=1e-6)


def test_slerp_of_raw_weights_is_that_of_mergekit():
    zeros = {"w": jnp.zeros(GOLDEN["shape"])}
    found = merge(Slerp(weights=Weights(default=(0.7, 0.3)), by="tensor"), MODELS[:2], zeros)
    np.testing.assert_allclose(found["w"], np.reshape(GOLDEN["results"]["slerp_raw"], GOLDEN["shape"]), rtol=1e-5, atol=1e-6)
