import pytest
from jax.sharding import PartitionSpec

from lmx.sharding import DEFAULT_RULES, Rules


def test_default_rules_split_batches_over_data_and_fsdp_and_parameters_over_fsdp_and_tensor():
    assert DEFAULT_RULES.spec(("batch", "length")) == PartitionSpec(("data", "fsdp"), None)
    assert DEFAULT_RULES.spec(("layers", "embed", "q_heads", "head_dim")) == PartitionSpec(None, "fsdp", "tensor", None)
    assert DEFAULT_RULES.spec(("vocab", "embed")) == PartitionSpec("tensor", "fsdp")
    assert DEFAULT_RULES.spec(("batch", "length", "activation_heads", None)) == PartitionSpec(
        ("data", "fsdp"), None, "tensor", None
    )


def test_an_unknown_axis_is_answered_with_near_names():
    with pytest.raises(ValueError, match=r"'kv_head' has no sharding rule; did you mean one of \['kv_heads'"):
        DEFAULT_RULES.spec(("kv_head",))


def test_two_logical_axes_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match=r"would use mesh axis 'tensor' for \['ffn', 'vocab'\] at once"):
        DEFAULT_RULES.spec(("ffn", "vocab"))


def test_a_rule_for_a_mesh_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'vocab' names mesh axes \['model'\]"):
        Rules((("vocab", "model"),))


def test_two_rules_for_one_axis_are_refused():
    with pytest.raises(ValueError, match="more than one rule"):
        Rules((("vocab", "tensor"), ("vocab", None)))
