"""`config.json` both ways: what each family's fields mean, and what is refused."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.models import afm, gemma2, llama3, qwen2, tiny
from lmx.convert.families.catalog import choose_family, read_config
from lmx.convert.source import ConversionError
from lmx.model.activation import gelu_tanh
from lmx.model.config import (
    DualChunk,
    FFNConfig,
    LinearHead,
    LinearScaling,
    Llama3Scaling,
    MoEConfig,
    ScalarHead,
    TiedHead,
    YarnScaling,
)
from tests.fixtures import hf_checkpoints


def read(name, **changes):
    values = {key: value for key, value in {**hf_checkpoints.config(name), **changes}.items() if value is not ...}
    return read_config(values, "config.json")[1]


def rope(**changes):
    return read("llama", **{"rope_theta": ..., "rope_scaling": ..., **changes}).layer_pattern[0].attention.rope


def test_both_generations_of_rope_keys_mean_the_same():
    llama3_keys = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = rope(rope_theta=5e5, rope_scaling={"type": "llama3", **llama3_keys})
    new = rope(rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **llama3_keys})
    both = rope(
        rope_theta=5e5,
        rope_scaling={"rope_type": "llama3", **llama3_keys},
        rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **llama3_keys},
    )
    assert old == new == both
    assert old.theta == 5e5 and old.scaling == Llama3Scaling(factor=8.0, original_length=32)
    assert rope().theta == 10_000.0 and rope().scaling is None
    assert rope(rope_theta=100, rope_scaling={"type": "linear", "factor": 2}).scaling == LinearScaling(factor=2.0)


def test_yarn_takes_its_defaults_from_the_model():
    plain = rope(rope_scaling={"type": "yarn", "factor": 4.0})
    assert plain.scaling == YarnScaling(factor=4.0, original_length=64)
    stated = {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2, "truncate": False, "original_max_position_embeddings": 32}
    scaling = rope(rope_scaling={"rope_type": "yarn", "factor": 2.0, **stated}).scaling
    expected = YarnScaling(factor=2.0, original_length=32, beta_fast=16, beta_slow=2, attention_factor=1.3, truncate=False)
    assert scaling == expected
    ratio = rope(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 16}).scaling
    assert ratio.factor == 4.0
    deepseek = rope(rope_scaling={"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}).scaling
    assert deepseek.attention_factor == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic', which lmx does not implement"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks the field factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5 must be at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "a number above 0 was expected"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mystery": 3}},
            "'mystery', which does not belong to the type 'linear'",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}}, "beta_fast=1.0 must exceed"),
        ({"rope_scaling": [1]}, "an object was expected"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "each kind of layer its own RoPE"),
        ({"rope_theta": 10.0, "rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}, "rope_theta=10, but .* says 20"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "contradicts itself"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: lmx rotates whole heads"),
    ],
)
def test_rope_that_lmx_does_not_implement_is_refused(changes, message):
    with pytest.raises(ConversionError, match=message):
        rope(**changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "mistral"}, "'mistral'; lmx converts llama, qwen2, gemma2, qwen2_moe"),
        ("llama", {"model_type": ["llama"]}, "lmx converts"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "reads LlamaForCausalLM"),
        ("llama", {"attention_bias": True}, "attention_bias=True: lmx has no bias on the attention's output"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu', which lmx does not implement"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised weights in this form are not read"),
        ("llama", {"logit_scale": 0.5}, "logit_scale=0.5, which lmx does not know and which may change"),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
        ("llama", {"per_layer_config": {"0": {}}}, "per_layer_config"),
        ("llama", {"sliding_window": 16}, "sliding_window=16"),
        ("llama", {"is_encoder_decoder": True}, "decoders only"),
        ("llama", {"num_key_value_heads": 4}, "q_heads=9 must be a multiple of kv_heads=4"),
        ("llama", {"head_dim": 7}, "head_dim=7 must be even"),
        ("llama", {"head_dim": None, "hidden_size": 37}, "does not divide it"),
        ("llama", {"hidden_size": -1}, "hidden_size=-1; a whole number from 1"),
        ("llama", {"hidden_size": "36"}, "hidden_size='36'"),
        ("llama", {"hidden_size": True}, "hidden_size=True"),
        ("llama", {"hidden_size": 2**31}, "a whole number from 1 to 2147483647"),
        ("llama", {"vocab_size": ...}, "lacks the field vocab_size"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ("llama", {"tie_word_embeddings": "yes"}, "true or false was expected"),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, "a list of num_hidden_layers=4 names"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer type 'chunked_attention'"),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 4}, "use_sliding_window=false"),
        ("qwen2_moe", {"mlp_only_layers": "3"}, "a list of layer numbers was expected"),
        ("qwen2_moe", {"num_experts_per_tok": 7}, "experts_per_token=7 must lie in 1..num_experts=6"),
        ("gemma2", {"attention_bias": True}, "attention_bias=True"),
        ("gemma2", {"use_bidirectional_attention": True}, "earlier tokens only"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "a number above 0 was expected"),
    ],
)
def test_fields_that_change_the_mathematics_are_refused(name, changes, message):
    with pytest.raises(ConversionError, match=message) as caught:
        read(name, **changes)
    assert "\n" not in str(caught.value)


def test_unknown_fields_that_sound_harmless_are_passed_over_and_said():
    values = hf_checkpoints.config("llama") | {"favourite_colour": "blue", "use_mrope": False, "attention_dropout": 0.1}
    _, _, notes = read_config(values, "config.json")
    assert notes == ("unknown fields of config.json were passed over: favourite_colour",)


def test_layers_become_the_shortest_pattern_that_repeats():
    assert len(read("llama").layer_pattern) == 1
    gemma = read("gemma2")
    assert [block.attention.window for block in gemma.layer_pattern] == [5, None]
    late = read("qwen2")
    assert [block.attention.window for block in late.layer_pattern] == [None, None, 5, 5]
    assert len(read("qwen2", max_window_layers=0).layer_pattern) == 1
    moe = read("qwen2_moe")
    assert [isinstance(block.ffn, MoEConfig) for block in moe.layer_pattern] == [False, True, False, False]
    every_other = read("qwen2_moe", mlp_only_layers=[])
    assert [isinstance(block.ffn, MoEConfig) for block in every_other.layer_pattern] == [False, True]
    # Without layer_types transformers 5 windows the even layers below max_window_layers in this family.
    implied = read("qwen2_moe", layer_types=..., max_window_layers=2, mlp_only_layers=[], decoder_sparse_step=1)
    assert [block.attention.window for block in implied.layer_pattern] == [5, None, None, None]


def test_the_fields_of_gemma_2_are_read():
    config = read("gemma2")
    block = config.layer_pattern[0]
    assert block.attention.scale == 17**-0.5 and block.attention.soft_cap == 5.0 and config.head == TiedHead(soft_cap=8.0)
    assert block.post_norms and block.norm.unit_offset and config.embedding_scale
    assert block.ffn == FFNConfig(ffn_dim=40, activation=gelu_tanh)
    off = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert off.layer_pattern[0].attention.soft_cap is None and off.head == TiedHead()
    absent = read("gemma2", attn_logit_softcapping=..., final_logit_softcapping=..., head_dim=...)
    assert absent.layer_pattern[0].attention.soft_cap == 50.0 and absent.head == TiedHead(soft_cap=30.0)
    assert absent.layer_pattern[0].attention.head_dim == 256


RELEASED = {
    "llama": [llama3.llama31_8b(), llama3.llama31_405b(), llama3.decoder(
        num_layers=2, model_dim=576, q_heads=9, kv_heads=3, head_dim=64, ffn_dim=8, scaling=LinearScaling(factor=2.0))],
    "qwen2": [qwen2.qwen2_0_5b(), qwen2.qwen2_72b()],
    "qwen2_moe": [qwen2.qwen2_57b_a14b()],
    "gemma2": [gemma2.gemma2_2b(), gemma2.gemma2_27b(vocab_size=256_128)],
}  # fmt: skip


@pytest.mark.parametrize(("family", "config"), [(family, config) for family, all_of in RELEASED.items() for config in all_of])
def test_released_models_come_back_from_their_config_as_they_went(family, config):
    chosen, fields = choose_family(config, None)
    assert chosen.name == family
    fields = {"model_type": family, **fields}
    back = read_config(fields, "config.json")[1]
    assert back == dataclasses.replace(config, init_std=0.02 if config.init_std is None else config.init_std)
    for hidden in ("rope_theta", "rope_scaling"):  # as transformers 5 alone would read it
        fields.pop(hidden)
    assert read_config(fields, "config.json")[1] == back


def test_tiny_configs_come_back_too():
    for name in hf_checkpoints.CONFIGS:
        config = read(name)
        family, fields = choose_family(config, hf_checkpoints.config(name)["model_type"])
        assert read_config({"model_type": family.name, **fields}, "config.json")[1] == config


def changed(config, **attention):
    block = config.layer_pattern[0]
    block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, **attention))
    return dataclasses.replace(config, layer_pattern=(block,), num_layers=2)


def test_a_model_that_no_family_can_hold_is_refused_with_the_reason_of_each():
    with pytest.raises(ConversionError, match="no Hugging Face family .* normalises queries and keys"):
        choose_family(afm.afm_on_device(), None)
    small = read("llama")
    for config, message in [
        (changed(small, soft_cap=3.0), "its attention scores are capped"),
        (changed(small, window=8), "llama format cannot hold this model: it has attention windows"),
        (changed(small, scale=0.3), "scaled by 0.3, not by head_dim"),
        (changed(small, dual_chunk=DualChunk(window=8, chunk_size=4)), "dual chunk attention"),
        (dataclasses.replace(small, head=ScalarHead()), "one number a token"),
        (dataclasses.replace(small, head=LinearHead(soft_cap=3.0)), "its logits are capped at 3.0"),
        (dataclasses.replace(small, model_dim=35), "model_dim=35 is no multiple of q_heads=9"),
    ]:
        with pytest.raises(ConversionError, match=message):
            choose_family(config, "llama")
    two_windows = dataclasses.replace(
        read("qwen2"),
        layer_pattern=(*changed(read("qwen2"), window=4).layer_pattern, *changed(read("qwen2"), window=8).layer_pattern),
    )
    with pytest.raises(ConversionError, match=r"its windows have the sizes \[4, 8\]"):
        choose_family(two_windows, "qwen2")


def test_the_number_of_layers_is_bounded_by_the_checkpoint():
    values = hf_checkpoints.config("llama") | {"num_hidden_layers": 2**30}
    with pytest.raises(ConversionError, match="num_hidden_layers=1073741824, but the checkpoint has only 39 tensors"):
        read_config(values, "config.json", max_tensors=39)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen2_moe", "gemma2"])
def test_the_tiny_models_of_lmx_fit_the_family_that_they_are_named_after(name):
    config = getattr(tiny, name)(vocab_size=512)
    family, fields = choose_family(config, None)
    assert family.name == name.removesuffix("3") and fields["vocab_size"] == 512


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(0, 12) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta"]), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(hf_checkpoints.CONFIGS)), data=st.data())
def test_configs_with_anything_in_their_fields_are_read_or_refused_in_a_sentence(name, data):
    values = hf_checkpoints.config(name)
    for field in data.draw(st.lists(st.sampled_from([*sorted(values), "rope_parameters", "quantization_config"]), max_size=3)):
        values[field] = data.draw(_VALUES)
    try:
        _, config, _ = read_config(values, "config.json", max_tensors=1000)
    except ConversionError as error:
        assert str(error) and len(str(error)) < 400
        return
    assert config.num_layers <= 1000
