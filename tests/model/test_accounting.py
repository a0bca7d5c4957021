"""Accounting formulas against counted parameters and hand values."""

import dataclasses

import pytest

from lmx.model import accounting
from lmx.model.config import LinearHead, ScalarHead, TiedHead
from lmx.model.decoder import build_model


def test_formula_counts_every_parameter(family):
    assert accounting.count_parameters(family.config).total == family.model.num_params()


@pytest.mark.parametrize("head", [TiedHead(), LinearHead(), ScalarHead()])
def test_formula_counts_mixed_patterns_and_every_head(mixed_config, head):
    config = dataclasses.replace(mixed_config, head=head)
    assert accounting.count_parameters(config).total == build_model(config).num_params()


@pytest.mark.parametrize("window", [None, 1, 3, 7, 9])
def test_mean_of_visible_keys_equals_counting_them(window):
    counted = [sum(window is None or i - j < window for j in range(i + 1)) for i in range(7)]
    assert accounting.mean_visible_keys(7, window) == pytest.approx(sum(counted) / 7)


def test_forward_flops_are_two_a_parameter_plus_attention(built):
    config = built("llama3").config
    parts = accounting.count_parameters(config)
    matrices = parts.attention + parts.ffn + parts.head
    attention = 2 * 4 * 4 * 8 * (17 + 1) / 2  # layers, 4 N H, mean of visible keys at length 17
    assert accounting.flops_per_token(config, 17, training=False) == pytest.approx(2 * matrices + attention)
    assert accounting.flops_per_token(config, 17, training=True) == pytest.approx(3 * (2 * matrices + attention))


def test_inactive_experts_cost_no_flops(built):
    config = built("qwen2_moe").config
    (block,) = config.layer_pattern
    more = dataclasses.replace(block.ffn, num_experts=2 * block.ffn.num_experts)
    wider = dataclasses.replace(config, layer_pattern=(dataclasses.replace(block, ffn=more),))
    added = accounting.flops_per_token(wider, 8, training=False) - accounting.flops_per_token(config, 8, training=False)
    assert added == 2 * config.num_layers * config.model_dim * block.ffn.num_experts  # the router's new columns alone
    assert accounting.count_parameters(wider).active - accounting.count_parameters(config).active == added / 2


def test_cache_of_windowed_layers_stops_growing_at_the_window(built):
    config = built("gemma2").config
    assert accounting.cache_elements_per_token(config) == 4 * 2 * 2 * 12  # layers, k and v, K, H
    assert accounting.cache_elements(config, 8) == 8 * accounting.cache_elements_per_token(config)
    assert accounting.cache_elements(config, 16) == 12 * accounting.cache_elements_per_token(config)  # half the layers grow
    assert accounting.cache_bytes(config, 8, batch_size=3, element_bytes=4) == 12 * accounting.cache_elements(config, 8)
