"""The decoder as pure functions: causality, document isolation, scan, remat, heads, axes and statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Precision
from lmx.model import rope
from lmx.model.attention import BlockInputs
from lmx.model.block import Block
from lmx.model.config import LinearHead, ScalarHead, TiedHead
from lmx.model.decoder import build_model
from lmx.model.embedding import embed
from lmx.model.execution import Execution
from lmx.model.norm import rms_norm

LENGTH = 24


def test_a_changed_token_changes_no_earlier_output(family, make_batch):
    batch = make_batch([[20], [20]], LENGTH)
    changed = dataclasses.replace(batch, tokens=batch.tokens.at[:, 13].set((batch.tokens[:, 13] + 1) % 48))
    before, after = family.apply(family.params, batch).hidden, family.apply(family.params, changed).hidden
    np.testing.assert_array_equal(before[:, :13], after[:, :13])
    assert jnp.min(jnp.max(jnp.abs(before - after)[:, 13:20], -1)[:, 0]) > 1e-3


def test_a_document_does_not_depend_on_its_neighbours(family, make_batch):
    sizes = {"a": 9, "b": 6, "c": 5}
    tokens = {name: np.random.default_rng(ord(name)).integers(0, 48, size) for name, size in sizes.items()}
    found = {}
    orders = ["abc", "cab"]
    rows = [np.concatenate([*(tokens[n] for n in order), np.zeros(4)]) for order in orders]
    batch = make_batch([[sizes[n] for n in order] for order in orders], LENGTH, tokens=np.stack(rows))
    hidden = family.apply(family.params, batch).hidden
    for row, order in enumerate(orders):
        start = 0
        for name in order:
            found.setdefault(name, []).append(hidden[row, start : start + sizes[name]])
            start += sizes[name]
    for first, second in found.values():
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_running_positions_give_the_same_as_restarting_ones(family, make_batch):
    batch = make_batch([[9, 11], [20]], LENGTH)
    running = dataclasses.replace(batch, positions=jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH)))
    valid = batch.segment_ids > 0

    def constant(path, leaf):  # AFM multiplies by its QK gain after the rotation: only a constant one commutes with it
        return jnp.full_like(leaf, 1.5) if path[-2].key in ("q_norm", "k_norm") else leaf

    params = jax.tree_util.tree_map_with_path(constant, family.params)
    before, after = family.apply(params, batch).hidden, family.apply(params, running).hidden
    np.testing.assert_allclose(before[valid], after[valid], atol=1e-4)  # RoPE sees distances, up to float32 angles


def test_padding_tokens_are_never_seen_and_give_finite_states(family, make_batch):
    batch = make_batch([[9, 10], [16]], LENGTH)
    other = dataclasses.replace(batch, tokens=jnp.where(batch.segment_ids > 0, batch.tokens, 7))
    valid = batch.segment_ids > 0
    before, after = family.apply(family.params, batch), family.apply(family.params, other)
    np.testing.assert_array_equal(before.hidden[valid], after.hidden[valid])
    assert jnp.all(jnp.isfinite(before.hidden))
    if before.router is not None:
        jax.tree.map(np.testing.assert_array_equal, before.router, after.router)


def test_gradients_are_finite_and_reach_every_parameter(family, make_batch):
    batch = make_batch([[9, 10], [16]], LENGTH)

    @jax.jit
    @jax.grad
    def slope(params):
        outputs = family.model.apply(params, batch)
        return jnp.sum((outputs.hidden @ outputs.head.T)[batch.loss_mask] ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(slope(family.params)):
        assert jnp.all(jnp.isfinite(leaf)), path
        assert jnp.max(jnp.abs(leaf)) > 0, path


@pytest.fixture(scope="module")
def mixed(mixed_config):
    model = build_model(mixed_config)
    params = model.init(jax.random.key(0))
    return mixed_config, model, params


def test_scan_equals_a_loop_over_the_layers(mixed, make_batch):
    config, model, params = mixed
    batch = make_batch([[9, 10], [16]], LENGTH)

    @jax.jit
    def loop(params):
        x = embed(params["embed"]["table"], batch.tokens, scale=config.embedding_scale, dtype="float32")
        routings = []
        for layer in range(config.num_layers):
            repeat, place = divmod(layer, len(config.layer_pattern))
            block = config.layer_pattern[place]
            weights = jax.tree.map(lambda leaf, r=repeat: leaf[r], params["blocks"][str(place)])
            rotation = rope.rotation(batch.positions, block.attention.head_dim, block.attention.rope)
            inputs = BlockInputs(batch.positions, batch.segment_ids, *rotation)
            module = Block(block, config.model_dim, Execution())
            x, _, routing = module.apply({"params": weights}, x, inputs, None, jnp.int32(0))
            routings += [] if routing is None else [routing]
        return rms_norm(x, params["final_norm"]["gain"], config.final_norm), routings

    hidden, routings = loop(params)
    outputs = jax.jit(model.apply)(params, batch)
    np.testing.assert_allclose(outputs.hidden, hidden, atol=1e-5)
    for layer, (selected, probs, squared) in enumerate(routings):
        np.testing.assert_array_equal(outputs.router.selected[layer], selected)
        np.testing.assert_allclose(outputs.router.probs[layer], probs, rtol=1e-5)
        np.testing.assert_allclose(outputs.router.logsumexp_squared[layer], squared, rtol=1e-5)


def test_router_statistics_come_in_the_order_of_depth(mixed_config, make_batch):
    moe = mixed_config.layer_pattern[0]
    config = dataclasses.replace(mixed_config, layer_pattern=(moe, moe))
    model = build_model(config)
    params = model.init(jax.random.key(0))
    # A zero router is even; layer 1 (repeat 0, place 1) alone gets one, so it alone has a log-sum-exp of log E.
    for place, even in (("0", []), ("1", [0])):
        kernel = params["blocks"][place]["ffn"]["router"]["kernel"]
        params["blocks"][place]["ffn"]["router"]["kernel"] = kernel.at[jnp.array(even, int)].set(0)
    batch = make_batch([[9, 10], [16]], LENGTH)
    router = jax.jit(model.apply)(params, batch).router
    assert router.tokens == 35
    np.testing.assert_allclose(router.selected.sum(-1), 35 * 2)
    np.testing.assert_allclose(router.probs.sum(-1), 35, rtol=1e-5)
    even = np.isclose(router.logsumexp_squared, 35 * np.log(6) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(even, [False, True, False, False])


def test_remat_and_unrolling_change_neither_values_nor_gradients(mixed, make_batch):
    config, _, params = mixed
    batch = make_batch([[9, 10], [16]], LENGTH)

    def run(remat, unroll=1):
        model = build_model(config, Execution(remat=remat, unroll=unroll))
        objective = jax.value_and_grad(lambda params: jnp.sum(model.apply(params, batch).hidden[..., 0] ** 2))
        compiled = jax.jit(objective).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    (value, grads), memory = run(None)
    for policy, unroll in (("full", 1), ("dots", 1), ("dots", 8)):  # 8 of 2 repeats: all of them
        (other_value, other_grads), other_memory = run(policy, unroll)
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        for grad, expected in zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-5 * jnp.max(jnp.abs(expected)))  # entries that cancel
        assert other_memory < memory


@pytest.mark.parametrize("name", ["gemma2", "qwen2_moe"])
def test_bfloat16_activations_keep_float32_parameters_and_stay_close(name, built, make_batch):
    family, batch = built(name), make_batch([[9, 10], [16]], LENGTH)
    model = build_model(family.config, Execution(precision=Precision(activations="bfloat16")))
    outputs = jax.jit(model.apply)(family.params, batch)
    assert outputs.hidden.dtype == jnp.bfloat16
    assert outputs.head.dtype == jnp.float32
    error = jnp.abs(outputs.hidden.astype(jnp.float32) - family.apply(family.params, batch).hidden)
    assert jnp.median(error[batch.segment_ids > 0]) < 0.05  # a router may send a few tokens elsewhere after rounding


def test_parameters_follow_the_precision_and_the_key(mixed):
    config, model, params = mixed
    half = build_model(config, Execution(precision=Precision(params="bfloat16", activations="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.abstract_params())} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, params, model.init(jax.random.key(0)))
    kernel, other = (p["blocks"]["0"]["attention"]["q"]["kernel"] for p in (params, model.init(jax.random.key(1))))
    assert jnp.any(kernel != other)
    assert jnp.any(kernel[0] != kernel[1])  # the layers of a scan differ


def test_initial_standard_deviations_follow_fan_in_or_the_config(mixed):
    config, _, fan_in = mixed
    fixed = build_model(dataclasses.replace(config, init_std=0.02)).init(jax.random.key(0))
    expected = {"table": 32**-0.5, "q": 32**-0.5, "o": 48**-0.5, "down": 24**-0.5}
    for params, std in ((fan_in, None), (fixed, 0.02)):
        block = params["blocks"]["1"]
        found = {
            "table": params["embed"]["table"],
            "q": block["attention"]["q"]["kernel"],
            "o": block["attention"]["o"]["kernel"],
            "down": block["ffn"]["down"]["kernel"],
        }
        for name, leaf in found.items():
            np.testing.assert_allclose(np.std(leaf), std or expected[name], rtol=0.1)
        np.testing.assert_array_equal(block["ffn_norm"]["gain"], 0.0)  # Gemma's 1 + w


def test_axes_name_every_dimension_of_every_parameter(family):
    shapes = family.model.abstract_params()
    axes = family.model.axes

    def check(path, names, leaf):
        assert len(names) == len(leaf.shape), path
        assert (names[0] == "layers") == (path[0].key == "blocks"), path
        assert len({n for n in names if n is not None}) == len([n for n in names if n is not None]), path

    jax.tree_util.tree_map_with_path(check, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert axes["embed"]["table"] == ("vocab", "embed")
    assert axes["blocks"]["0"]["attention"]["q"]["kernel"] == ("layers", "embed", "q_heads", "head_dim")


def test_tied_linear_and_scalar_heads_differ_in_their_table_alone(mixed_config, make_batch):
    batch = make_batch([[9]], 12)
    tables = {}
    for head in (TiedHead(soft_cap=30.0), LinearHead(), ScalarHead()):
        model = build_model(dataclasses.replace(mixed_config, head=head))
        params = model.abstract_params()
        outputs = jax.eval_shape(model.apply, params, batch)
        tables[type(head).__name__] = (outputs.head.shape, "head" in params, outputs.soft_cap, model.axes.get("head"))
    assert tables == {
        "TiedHead": ((48, 32), False, 30.0, None),
        "LinearHead": ((48, 32), True, None, {"table": ("vocab", "embed")}),
        "ScalarHead": ((1, 32), True, None, {"table": (None, "embed")}),
    }


def test_execution_callables_are_used_everywhere(mixed_config, make_batch):
    seen = []

    def constrain(x, axes):
        assert len(axes) == x.ndim
        seen.append(axes)
        return x

    def kernel(q, k, v, **options):
        seen.append("attention")
        return q

    def experts(x, *weights, activation):
        seen.append("experts")
        return x

    model = build_model(mixed_config, Execution(constrain=constrain, attention=kernel, experts=experts))
    assert not seen  # building and counting run none of them
    jax.eval_shape(model.apply, model.abstract_params(), make_batch([[9]], 12))
    names = {name for axes in seen if isinstance(axes, tuple) for name in axes if name}
    assert names == {
        "batch",
        "length",
        "activation_embed",
        "activation_heads",
        "activation_kv_heads",
        "activation_ffn",
        "activation_vocab",
    }
    assert {"attention", "experts"} <= set(seen)


def test_too_long_a_batch_and_an_unknown_remat_are_refused_with_the_numbers(mixed_config, make_batch):
    model = build_model(mixed_config)
    with pytest.raises(ValueError, match="65 tokens a row exceeds the model's max_length=64"):
        jax.eval_shape(model.apply, model.abstract_params(), make_batch([[9]], 65))
    with pytest.raises(ValueError, match="remat='some' is not one of None, 'full', 'dots'"):
        Execution(remat="some")
