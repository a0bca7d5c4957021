import re

import jax
import pytest

from configs.models import tiny
from lmx.model.decoder import build_model
from lmx.optim import masks

PARAMS = {"blocks": {"0": {"norm": {"gain": 1.0}, "q": {"kernel": 2.0, "bias": 3.0}}}, "embed": {"table": 4.0}}


def test_a_mask_marks_the_paths_that_match():
    assert masks.path_mask("^blocks/0/q")(PARAMS) == {
        "blocks": {"0": {"norm": {"gain": False}, "q": {"kernel": True, "bias": True}}},
        "embed": {"table": False},
    }


def test_matched_false_inverts_the_mask():
    assert masks.path_mask("table", matched=False)(PARAMS)["embed"]["table"] is False
    assert masks.path_mask("table", matched=False)(PARAMS)["blocks"]["0"]["q"]["bias"] is True


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen2_moe", "gemma2", "afm"])
def test_vectors_are_the_gains_and_biases_of_a_decoder_and_nothing_else(family):
    """A gain has one axis besides the layers', a bias the output axes of its kernel: told here from the axes, by name there."""
    model = build_model(getattr(tiny, family)())
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    for path, axes in jax.tree_util.tree_leaves_with_path(model.axes, is_leaf=is_axes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own = tuple(axis for axis in axes if axis != "layers")
        is_vector = len(own) == 1 or own in (("q_heads", "head_dim"), ("kv_heads", "head_dim"))
        assert bool(re.search(masks.VECTORS, name)) == is_vector, name
