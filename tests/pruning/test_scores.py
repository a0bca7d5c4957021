"""Scores against what they are defined as."""

import dataclasses

import jax
import numpy as np
import pytest

from lmx.kernels import head
from lmx.model.decoder import build_model
from lmx.pruning.choose import choose
from lmx.pruning.cut import cut
from lmx.pruning.scores import activation_scores, random_scores, weight_scores


def test_weight_scores_are_the_norms_of_all_weights_of_a_part(get):
    config, params = get("afm")
    scores = weight_scores(params, config)
    block = jax.tree.map(lambda x: np.asarray(x[1], np.float64), params["blocks"]["0"])
    gate, up, down = (block["ffn"][name]["kernel"] for name in ("gate", "up", "down"))
    np.testing.assert_allclose(scores.ffn[0][1], np.sqrt((gate**2 + up**2).sum(0) + (down**2).sum(1)), rtol=1e-5)
    q, k, v, o = (block["attention"][name]["kernel"] for name in "qkvo")
    np.testing.assert_allclose(scores.q_heads[0][1], np.sqrt((q**2).sum((0, 2)) + (o**2).sum((1, 2))), rtol=1e-5)
    np.testing.assert_allclose(scores.kv_heads[0][1], np.sqrt((k**2 + v**2).sum((0, 2))), rtol=1e-5)
    assert scores.embed.shape == (16,) and scores.layers is None


def test_every_family_has_scores_of_the_shapes_of_its_parts(family, batch):
    config, params = family
    for scores in (weight_scores(params, config), activation_scores(params, config, [batch]), random_scores(config, 0)):
        for place, block in enumerate(config.layer_pattern):
            assert scores.q_heads[place].shape == (config.num_repeats, block.attention.q_heads)
            assert scores.kv_heads[place].shape == (config.num_repeats, block.attention.kv_heads)
            dense = hasattr(block.ffn, "ffn_dim")
            assert np.shape(scores.ffn[place]) == ((config.num_repeats, block.ffn.ffn_dim) if dense else ())
        assert scores.embed.shape == (config.model_dim,)
        assert scores.layers is None or scores.layers.shape == (config.num_layers,)
        parts = [scores.embed, *scores.q_heads, *scores.kv_heads, *(x for x in scores.ffn if x is not None)]
        assert all(np.all(np.isfinite(x)) and np.all(x >= 0) for x in parts)


def test_a_unit_that_is_never_active_and_a_layer_that_does_nothing_score_zero(get, batch):
    config, params = get("qwen2")
    ffn = params["blocks"]["0"]["ffn"]
    up = ffn["up"]["kernel"].at[1, :, 3].set(0.0)
    down = ffn["down"]["kernel"].at[2].set(0.0)
    o = params["blocks"]["0"]["attention"]["o"]["kernel"].at[2].set(0.0)
    block = params["blocks"]["0"] | {"ffn": ffn | {"up": {"kernel": up}, "down": {"kernel": down}}}
    block["attention"] = block["attention"] | {"o": {"kernel": o}}
    scores = activation_scores({**params, "blocks": {"0": block}}, config, [batch])
    assert scores.ffn[0][1, 3] == 0 and np.sum(scores.ffn[0] == 0) == 1
    assert scores.layers[2] == pytest.approx(0, abs=1e-5) and np.all(scores.layers[:2] > 1e-3)


def test_padding_and_the_cutting_into_batches_change_nothing(get, batch):
    config, params = get("gemma2")
    whole = activation_scores(params, config, [batch])
    rows = [jax.tree.map(lambda x, row=row: x[row : row + 1], batch) for row in range(2)]
    other = jax.tree.map(lambda x: x, rows[1])
    other = dataclasses.replace(other, tokens=other.tokens.at[:, 9:].set(7))
    split = activation_scores(params, config, [rows[0], other])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), dataclasses.astuple(whole), dataclasses.astuple(split))


def test_dropping_the_least_active_units_hurts_less_than_dropping_the_most_active(get, resized, batch):
    config, params = get("llama3")
    target = resized(config, ffn_dim=8)
    scores = activation_scores(params, config, [batch]).times(weight_scores(params, config))
    upside_down = dataclasses.replace(scores, ffn=tuple(-x for x in scores.ffn))
    whole = head.logits(build_model(config).apply(params, batch))

    def distance(scores):
        child = cut(params, config, choose(scores, config, target))
        return float(np.square(head.logits(build_model(target).apply(child, batch)) - whole).mean())

    assert distance(scores) < 0.8 * distance(upside_down)


def test_no_text_gives_no_scores(get, batch):
    config, params = get("llama3")
    with pytest.raises(ValueError, match="activation scores need text, but the batches hold no token"):
        activation_scores(params, config, [])
