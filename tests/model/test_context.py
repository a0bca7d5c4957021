"""Another context, the same parameters."""

import dataclasses

import jax

from configs.models import tiny
from lmx.model.config import TiedHead
from lmx.model.context import same_but_context, with_context
from lmx.model.decoder import build_model


def test_base_and_length_change_in_every_layer_and_no_parameter_does() -> None:
    config = tiny.gemma2()
    longer = with_context(config, rope_theta=1e6, max_length=4096)
    assert {block.attention.rope.theta for block in longer.layer_pattern} == {1e6} and longer.max_length == 4096
    assert [block.attention.window for block in longer.layer_pattern] == [block.attention.window for block in config.layer_pattern]
    shapes = [jax.tree.map(lambda x: x.shape, build_model(c).abstract_params()) for c in (config, longer)]
    assert shapes[0] == shapes[1]
    assert with_context(config) == config


def test_a_scaling_stays_and_counts_as_context() -> None:
    config = tiny.llama3()
    rope = with_context(config, rope_theta=99.0).layer_pattern[0].attention.rope
    assert rope.scaling == config.layer_pattern[0].attention.rope.scaling and rope.theta == 99.0
    assert same_but_context(config, with_context(config, rope_theta=99.0, max_length=7))
    assert not same_but_context(config, dataclasses.replace(config, head=TiedHead()))
