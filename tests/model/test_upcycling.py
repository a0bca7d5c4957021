"""Experts out of a dense FFN: the counts of the real sizes, what is shared and what is drawn, and the model that comes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.models import qwen2, tiny
from lmx.model.activation import gated, silu
from lmx.model.config import FFNConfig, MoEConfig
from lmx.model.decoder import build_model
from lmx.model.upcycling import Upcycling, check_upcycling, column_ids, copies, layer_key, upcycle, upcycle_layer

D, F = 8, 20
KEY = jax.random.key(0)
WHOLE = Upcycling(redrawn=0.0)


def moe(num_experts=5, width=4, shared=None):
    expert = FFNConfig(ffn_dim=width, activation=silu)
    wide = None if shared is None else FFNConfig(ffn_dim=shared, activation=silu)
    return MoEConfig(num_experts=num_experts, experts_per_token=2, expert=expert, shared=wide)


@pytest.fixture(scope="module")
def ffn():
    random = np.random.default_rng(0)
    shapes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    return {name: {"kernel": jnp.asarray(random.standard_normal(shape), jnp.float32)} for name, shape in shapes.items()}


def run(x, gate, up, down):
    return gated(x @ gate, x @ up, silu) @ down


def test_the_real_sizes_take_nine_copies_and_drop_6656_columns():
    assert copies(18_944, 64, 2_560) == (9, 6_656)
    assert copies(18_944, 1, 20_480) == (2, 2 * 18_944 - 20_480)


def test_the_real_model_comes_out_in_its_shapes_without_an_array_being_made():
    dense, target = qwen2.qwen2_7b(), qwen2.qwen2_57b_a14b()
    check_upcycling(dense, target)
    params = build_model(dense).abstract_params()
    made = jax.eval_shape(lambda params, key: upcycle(params, dense, target, key), params, jax.eval_shape(jax.random.key, 0))
    expected = build_model(target).abstract_params()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_all_experts_of_one_copy_together_are_the_dense_ffn(ffn):
    made = upcycle_layer(ffn, moe(), KEY, WHOLE)["experts"]
    x = jax.random.normal(jax.random.key(1), (3, D))
    together = sum(run(x, made["gate"][e], made["up"][e], made["down"][e]) for e in range(5))
    np.testing.assert_allclose(together, run(x, *(ffn[name]["kernel"] for name in ("gate", "up", "down"))), rtol=1e-4, atol=1e-4)


@given(experts=st.integers(1, 9), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_each_copy_is_a_permutation_of_its_own(experts, width, seed):
    ids = np.asarray(column_ids(jax.random.key(seed), F, experts, width)).reshape(-1)
    assert len(ids) == experts * width
    whole = [ids[start : start + F] for start in range(0, len(ids), F)]
    assert all(len(set(part)) == len(part) and set(part) <= set(range(F)) for part in whole)
    if len(whole) > 2:
        assert not np.array_equal(whole[0], whole[1])


def test_gate_up_and_down_share_their_columns(ffn):
    made = upcycle_layer(ffn, moe(num_experts=7, width=6), KEY, WHOLE)["experts"]  # 42 columns of three copies
    for e in range(7):
        for column in range(6):
            [source] = np.flatnonzero(np.all(made["gate"][e, :, column] == ffn["gate"]["kernel"].T, axis=1))
            np.testing.assert_array_equal(made["up"][e, :, column], ffn["up"]["kernel"][:, source])
            np.testing.assert_array_equal(made["down"][e, column], ffn["down"]["kernel"][source])


def test_half_of_each_expert_is_drawn_anew_by_columns_and_the_shared_expert_is_not(ffn):
    settings = moe(num_experts=4, width=10, shared=25)
    old, new = (upcycle_layer(ffn, settings, KEY, Upcycling(redrawn=share)) for share in (0.0, 0.5))
    for name, axis in (("gate", 1), ("up", 1), ("down", 2)):
        changed = np.asarray(old["experts"][name] != new["experts"][name])
        columns = changed.all(axis=axis)
        np.testing.assert_array_equal(columns, changed.any(axis=axis))
        np.testing.assert_array_equal(columns.sum(axis=1), 5)
        drawn = np.asarray(new["experts"][name])[changed]
        assert drawn.std() == pytest.approx(float(ffn[name]["kernel"].std()), rel=0.2)
    assert old["shared"]["gate"]["kernel"].shape == (D, 25)
    jax.tree.map(np.testing.assert_array_equal, old["shared"], new["shared"])


def test_half_of_the_elements_within_one_percent():
    random = np.random.default_rng(1)
    wide = {n: {"kernel": jnp.asarray(random.standard_normal(s), jnp.float32)} for n, s in
            (("gate", (128, 192)), ("up", (128, 192)), ("down", (192, 128)))}  # fmt: skip
    old, new = (upcycle_layer(wide, moe(4, 96), KEY, Upcycling(redrawn=r, unit="elements", std=0.02)) for r in (0.0, 0.5))
    for name in ("gate", "up", "down"):
        changed = np.asarray(old["experts"][name] != new["experts"][name])
        assert changed.mean() == pytest.approx(0.5, abs=0.01)
        assert np.asarray(new["experts"][name])[changed].std() == pytest.approx(0.02, rel=0.05)


def test_router_and_shared_gate_are_random_and_small(ffn):
    made = upcycle_layer(ffn, moe(num_experts=20, width=2, shared=4), KEY)
    assert made["router"]["kernel"].shape == (D, 20) and made["shared_gate"]["kernel"].shape == (D, 1)
    assert made["router"]["kernel"].std() == pytest.approx(0.02, rel=0.3)


@pytest.fixture(scope="module")
def models():
    sizes = {"model_dim": 16, "num_layers": 2, "q_heads": 2, "kv_heads": 1, "head_dim": 8, "max_length": 16}
    dense = tiny.qwen2(48, **sizes, ffn_dim=20, tied=False)
    target = tiny.qwen2_moe(40, **sizes, ffn_dim=12, num_experts=5, experts_per_token=2)
    return dense, target, build_model(dense).init(jax.random.key(1))


def test_the_whole_model_is_the_layers_made_one_by_one_and_all_else_is_copied(models):
    dense, target, params = models
    made = jax.jit(lambda p, k: upcycle(p, dense, target, k))(params, KEY)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(lambda x: x.shape, build_model(target).abstract_params())
    for layer in range(2):
        own = jax.tree.map(lambda x, layer=layer: x[layer], params["blocks"]["0"]["ffn"])
        alone = upcycle_layer(own, target.layer_pattern[0].ffn, layer_key(KEY, 0, layer))
        jax.tree.map(
            lambda a, b, layer=layer: np.testing.assert_allclose(a[layer], b, rtol=1e-5, atol=1e-7),
            made["blocks"]["0"]["ffn"],
            alone,
        )
    jax.tree.map(np.testing.assert_array_equal, made["blocks"]["0"]["attention"], params["blocks"]["0"]["attention"])
    np.testing.assert_array_equal(made["head"]["table"], params["head"]["table"][:40])
    first, second = (made["blocks"]["0"]["ffn"]["router"]["kernel"][layer] for layer in range(2))
    assert not np.array_equal(first, second)


def test_with_every_expert_active_and_equal_weights_the_routed_part_is_the_dense_ffn_over_the_number_of_experts(models):
    dense, target, params = models
    ffn = dataclasses.replace(target.layer_pattern[0].ffn, num_experts=5, experts_per_token=5, shared=None)
    ffn = dataclasses.replace(ffn, expert=dataclasses.replace(ffn.expert, ffn_dim=4))
    block = dataclasses.replace(target.layer_pattern[0], ffn=ffn)
    same = dataclasses.replace(target, layer_pattern=(block,), vocab_size=48)
    made = upcycle(params, dense, same, KEY, Upcycling(redrawn=0.0, router_std=0.0))
    made["blocks"]["0"]["ffn"]["experts"]["down"] *= 5.0  # the router gives each of the five a fifth
    ids = np.arange(12, dtype=np.int32).reshape(1, 12)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Batch:
        tokens: object
        segment_ids: object
        positions: object

    batch = Batch(ids, np.ones_like(ids), ids)
    hidden = [build_model(config).apply(p, batch).hidden for config, p in ((same, made), (dense, params))]
    np.testing.assert_allclose(*hidden, rtol=1e-4, atol=1e-4)


def test_targets_that_are_not_the_dense_model_with_experts_are_refused(models):
    dense, target, _ = models
    with pytest.raises(ValueError, match="upcycling changes FFNs only, but the target also changes model_dim: 16 -> 32"):
        check_upcycling(dense, dataclasses.replace(target, model_dim=32))
    with pytest.raises(ValueError, match="vocab_size=64 exceeds the dense model's 48"):
        check_upcycling(dense, dataclasses.replace(target, vocab_size=64))
    with pytest.raises(ValueError, match="is a mixture of experts already"):
        check_upcycling(target, target)
    with pytest.raises(ValueError, match=r"redrawn=1\.5"):
        Upcycling(redrawn=1.5)
