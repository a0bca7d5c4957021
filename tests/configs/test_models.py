"""The model zoo against the published integers, by `eval_shape`: nothing is allocated."""

import dataclasses

import numpy as np
import pytest

from configs.models import afm, gemma2, llama3, qwen2, tiny
from lmx.model import accounting, rope
from lmx.model.config import RopeConfig, ScalarHead, TiedHead
from lmx.model.decoder import build_model

# total, non-embedding, attention / layer, FFN / layer, norms / layer, input table, KV-cache elements a token
PUBLISHED = {
    qwen2.qwen2_0_5b: (494_032_768, 357_898_112, 1_836_160, 13_074_432, 1_792, 136_134_656, 6_144),
    qwen2.qwen2_1_5b: (1_543_714_304, 1_310_340_608, 5_507_072, 41_287_680, 3_072, 233_373_696, 14_336),
    qwen2.qwen2_7b: (7_615_616_512, 6_525_621_760, 29_364_736, 203_685_888, 7_168, 544_997_376, 28_672),
    qwen2.qwen2_72b: (72_706_203_648, 70_214_787_072, 151_005_184, 726_663_168, 16_384, 1_245_708_288, 163_840),
    qwen2.qwen2_57b_a14b: (57_408_658_944, 56_319_581_696, 29_364_736, 1_982_041_600, 7_168, 544_538_624, 28_672),
    llama3.llama31_8b: (8_030_261_248, 6_979_588_096, 41_943_040, 176_160_768, 8_192, 525_336_576, 65_536),
    llama3.llama31_70b: (70_553_706_496, 68_452_360_192, 150_994_944, 704_643_072, 16_384, 1_050_673_152, 163_840),
    llama3.llama31_405b: (405_853_388_800, 401_650_696_192, 570_425_344, 2_617_245_696, 32_768, 2_101_346_304, 258_048),
    gemma2.gemma2_2b: (2_614_341_888, 2_024_517_888, 14_155_776, 63_700_992, 9_216, 589_824_000, 53_248),
    gemma2.gemma2_9b: (9_241_705_984, 8_324_201_984, 44_040_192, 154_140_672, 14_336, 917_504_000, 172_032),
    gemma2.gemma2_27b: (27_227_128_320, 26_047_480_320, 56_623_104, 509_607_936, 18_432, 1_179_648_000, 188_416),
    afm.afm_on_device: (2_737_739_264, 2_586_744_320, 25_165_824, 74_317_824, 6_400, 150_994_944, 53_248),
    afm.afm_parent: (6_571_595_264, 6_420_600_320, 25_165_824, 221_773_824, 6_400, 150_994_944, 53_248),
    afm.afm_server_proxy: (55_181_602_816, 54_359_519_232, 150_994_944, 528_482_304, 16_640, 822_083_584, 163_840),
    afm.honeycrisp_85m: (122_704_128, 84_955_392, 1_769_472, 5_308_416, 1_664, 37_748_736, 9_216),
}


@pytest.mark.parametrize("make", PUBLISHED, ids=lambda make: make.__name__)
def test_every_published_integer_is_reproduced(make):
    config = make()
    total, non_embedding, attention, ffn, norms, table, cache_elements = PUBLISHED[make]
    assert build_model(config).num_params() == total
    block, dim = config.layer_pattern[0], config.model_dim
    assert accounting.attention_parameters(block.attention, dim) == attention
    assert accounting.ffn_parameters(block.ffn, dim) == ffn
    assert accounting.norm_parameters(block, dim) == norms
    count = accounting.count_parameters(config)
    assert (count.total, count.non_embedding, count.embedding) == (total, non_embedding, table)
    assert count.head == (0 if isinstance(config.head, TiedHead) else table)
    assert accounting.cache_elements_per_token(config) == cache_elements


@pytest.mark.parametrize(
    ("make", "total"),
    [(gemma2.gemma2_2b, 2_614_636_800), (gemma2.gemma2_9b, 9_242_164_736), (gemma2.gemma2_27b, 27_227_718_144)],
)
def test_googles_padded_tables_of_gemma_2_are_reproduced(make, total):
    assert build_model(make(vocab_size=256_128)).num_params() == total


def test_afm_parent_of_the_other_reading_is_6_4b_in_total():
    assert build_model(afm.afm_parent(ffn_dim=23_296)).num_params() == 6_387_570_176


def test_active_parameters_of_the_mixture_are_the_published_14b():
    config = qwen2.qwen2_57b_a14b()
    count, moe = accounting.count_parameters(config), config.layer_pattern[0].ffn
    assert count.active == 14_249_270_784
    assert count.active - count.embedding == 13_704_732_160
    assert accounting.ffn_parameters(moe, 3_584) - accounting.inactive_parameters(moe, 3_584) == 440_634_880
    assert accounting.ffn_parameters(moe.expert, 3_584) == 27_525_120
    assert accounting.ffn_parameters(moe.shared, 3_584) == 220_200_960


def test_gemma_2_cache_at_its_context_is_three_quarters_of_full_attention():
    config = gemma2.gemma2_9b()
    assert accounting.cache_elements(config, 8_192) == 0.75 * 8_192 * accounting.cache_elements_per_token(config)


def test_flagship_training_budget_is_the_published_one():
    flops = accounting.flops_per_token(llama3.llama31_405b(), 8_192, training=True) * 15.6e12
    assert flops == pytest.approx(3.8e25, rel=0.05)  # 6 N D, and here attention on top


@pytest.mark.parametrize(("make", "scale"), [(gemma2.gemma2_2b, 1 / 16), (gemma2.gemma2_9b, 1 / 16), (gemma2.gemma2_27b, 1 / 12)])
def test_gemma_2_alternates_from_a_local_layer_with_its_own_query_scale(make, scale):
    local, full = make().layer_pattern
    assert (local.attention.window, full.attention.window) == (4_096, None)
    assert local.attention.scale == full.attention.scale == pytest.approx(scale)


TINY = [tiny.qwen2, tiny.qwen2_moe, tiny.afm, tiny.gemma2, tiny.llama3]
FULL = [qwen2.qwen2_0_5b, qwen2.qwen2_57b_a14b, afm.afm_on_device, gemma2.gemma2_27b, llama3.llama31_8b]


def _mechanisms(value):
    """The config with every size replaced by the fact that there is one."""
    if dataclasses.is_dataclass(value):
        return type(value).__name__, {
            f.name: _mechanisms(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "init_std"
        }
    if isinstance(value, tuple):
        return tuple(map(_mechanisms, value))
    return value if value is None or isinstance(value, bool) or callable(value) else type(value).__name__


@pytest.mark.parametrize(("small", "full"), zip(TINY, FULL, strict=True), ids=lambda make: make.__name__)
def test_tiny_models_have_the_very_mechanisms_of_their_family(small, full):
    assert _mechanisms(small(256)) == _mechanisms(full())


@pytest.mark.parametrize("make", TINY, ids=lambda make: make.__name__)
def test_tiny_models_are_small_and_take_sizes(make):
    assert build_model(make()).num_params() < 500_000
    sizes = {"model_dim": 48, "num_layers": 2, "q_heads": 6, "kv_heads": 3, "head_dim": 8, "ffn_dim": 40, "max_length": 64}
    config = make(100, **sizes)
    attention = config.layer_pattern[-1].attention
    assert (config.vocab_size, config.model_dim, config.num_layers, config.max_length) == (100, 48, 2, 64)
    assert (attention.q_heads, attention.kv_heads, attention.head_dim) == (6, 3, 8)


@pytest.mark.parametrize(
    ("theta", "trained", "full_head_dim", "length", "expected"),
    [
        (1e4, 4_096, 128, 128, 393),
        (1e4, 4_096, 128, 256, 823),
        (1e6, 32_768, 128, 1_024, 49_489),
        (5e5, 8_192, 128, 128, 11_411),
        (5e5, 4_096, 128, 128, 23_902),
        (1e4, 8_192, 256, 256, 424.5),
    ],
)
def test_matched_rope_bases_are_those_of_the_spec(theta, trained, full_head_dim, length, expected):
    found = tiny.matched_theta(theta, trained_length=trained, full_head_dim=full_head_dim, length=length, head_dim=32)
    assert found == pytest.approx(expected, rel=2e-3)


def test_tiny_llama_keeps_blends_and_slows_frequencies():
    config = tiny.llama3().layer_pattern[0].attention
    ratio = rope.frequencies(config.head_dim, config.rope) / rope.frequencies(config.head_dim, RopeConfig(theta=config.rope.theta))
    assert np.any(ratio == 1.0)
    assert np.any((ratio > 0.126) & (ratio < 0.999))
    assert np.any(np.isclose(ratio, 0.125))


def test_a_scalar_head_turns_any_of_them_into_a_reward_model():
    config = dataclasses.replace(tiny.llama3(), head=ScalarHead())
    assert build_model(config).abstract_params()["head"]["table"].shape == (1, config.model_dim)
