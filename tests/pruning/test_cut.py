"""The child computes what the parent computes with the dropped parts at 0, on every axis and for every family."""

import dataclasses

import jax
import numpy as np
import pytest

from lmx.model.decoder import build_model
from lmx.pruning.choose import choose
from lmx.pruning.cut import Keep, check_target, cut, masked
from lmx.pruning.scores import random_scores


def with_eps(config, factor):
    """The config with the eps of its norms over channels (not over heads) multiplied."""

    def norm(old):
        return dataclasses.replace(old, eps=old.eps * factor)

    pattern = tuple(dataclasses.replace(block, norm=norm(block.norm)) for block in config.layer_pattern)
    return dataclasses.replace(config, layer_pattern=pattern, final_norm=norm(config.final_norm))


def child_and_masked_parent(family, target, batch, logits_of, *, seed=0):
    config, params = family
    check_target(config, target)
    keep = choose(random_scores(config, seed), config, target)
    child = jax.jit(lambda p: cut(p, config, keep))(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), build_model(target).abstract_params())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), child) == shapes
    runs = with_eps(target, config.model_dim / target.model_dim)
    return logits_of(runs, child, batch), logits_of(config, masked(params, config, keep), batch), (child, keep)


AXES = [
    {"ffn_dim": 5},
    {"q_heads": 2},  # one query head of each group
    {"q_heads": 2, "kv_heads": 1},
    {"model_dim": 10},
    {"num_layers": 2},
]
ALL = {"ffn_dim": 7, "q_heads": 2, "kv_heads": 1, "model_dim": 12, "num_layers": 2}
CASES = [(name, sizes) for name in ("afm", "gemma2") for sizes in AXES]
CASES += [(name, ALL) for name in ("qwen2", "qwen2_moe", "afm", "gemma2", "llama3")]


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=[f"{name}:{','.join(sizes)}" for name, sizes in CASES])
def test_the_child_equals_the_masked_parent(name, sizes, get, resized, batch, logits_of):
    config, params = get(name)
    child, parent, _ = child_and_masked_parent((config, params), resized(config, **sizes), batch, logits_of)
    np.testing.assert_allclose(child, parent, rtol=1e-5, atol=1e-5)
    assert np.abs(parent - logits_of(config, params, batch)).max() > 1e-2, "the mask must have done something"


def test_with_the_norms_eps_as_it_was_the_difference_is_of_the_order_of_eps(get, resized, batch, logits_of):
    config, params = get("llama3")
    target = resized(config, model_dim=12)
    _, parent, (child, _) = child_and_masked_parent((config, params), target, batch, logits_of)
    np.testing.assert_allclose(logits_of(target, child, batch), parent, atol=1e-3)


def test_only_ffn_shapes_change_and_gate_up_and_down_share_their_ids(get, resized):
    config, params = get("gemma2")
    keep = choose(random_scores(config, 0), config, resized(config, ffn_dim=5))
    child = cut(params, config, keep)
    for place in ("0", "1"):
        before, after = params["blocks"][place], child["blocks"][place]
        for layer, ids in enumerate(keep.ffn[int(place)]):
            np.testing.assert_array_equal(after["ffn"]["gate"]["kernel"][layer], before["ffn"]["gate"]["kernel"][layer][:, ids])
            np.testing.assert_array_equal(after["ffn"]["up"]["kernel"][layer], before["ffn"]["up"]["kernel"][layer][:, ids])
            np.testing.assert_array_equal(after["ffn"]["down"]["kernel"][layer], before["ffn"]["down"]["kernel"][layer][ids])
        jax.tree.map(np.testing.assert_array_equal, after["attention"], before["attention"])
    jax.tree.map(np.testing.assert_array_equal, child["embed"], params["embed"])


def test_keeping_everything_changes_nothing(family):
    config, params = family
    jax.tree.map(np.testing.assert_array_equal, cut(params, config, Keep()), params)
    jax.tree.map(np.testing.assert_array_equal, cut(params, config, choose(random_scores(config, 0), config, config)), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ffn_dim": 13}, r"layer_pattern\.0\.ffn\.ffn_dim=13 exceeds the source's 12"),
        ({"num_layers": 4}, "num_layers=4 exceeds the source's 3"),
        ({"kv_heads": 1}, "has 4 query heads a KV head and the source 2"),
        ({"vocab_size": 40}, "also changes vocab_size: 48 -> 40"),
    ],
)
def test_what_is_more_than_a_smaller_size_is_refused(get, resized, change, message):
    config, _ = get("llama3")
    with pytest.raises(ValueError, match=message):
        check_target(config, resized(config, **change))


def test_a_mixture_of_experts_keeps_its_widths_and_a_pattern_its_length(get):
    config, _ = get("qwen2_moe")
    block = config.layer_pattern[0]
    narrow = dataclasses.replace(block.ffn, expert=dataclasses.replace(block.ffn.expert, ffn_dim=4))
    with pytest.raises(ValueError, match="the widths of a mixture of experts are not pruned"):
        check_target(config, dataclasses.replace(config, layer_pattern=(dataclasses.replace(block, ffn=narrow),)))
    gemma, _ = get("gemma2")
    with pytest.raises(ValueError, match="the target's layer pattern has 1 blocks and the source's 2"):
        check_target(gemma, dataclasses.replace(gemma, layer_pattern=gemma.layer_pattern[:1]))
