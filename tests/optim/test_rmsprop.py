"""AFM's optimizer against the recorded trace, a float64 transcription, and its own symmetries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.models import tiny
from lmx.model.decoder import build_model
from lmx.optim import AdamW, Constant, Layout, MuPSimple, RMSProp, WarmupCosine
from lmx.optim.rmsprop import descend

SCALAR = Layout({"ffn": {"up": {"kernel": ("embed",)}}}, width=3072)
AXES = {
    "blocks": {
        "attention": {name: {"kernel": ("layers", "embed", None)} for name in "qkv"},
        "ffn": {"up": {"kernel": ("layers", "embed", "ffn")}},
    },
    "embed": {"table": ("vocab", "embed")},
}


def trace(optimizer, gradients, theta):
    params = {"ffn": {"up": {"kernel": jnp.array([theta])}}}
    state, found = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update({"ffn": {"up": {"kernel": jnp.array([gradient])}}}, state, params)
        params = optax.apply_updates(params, updates)
        found.append((float(params["ffn"]["up"]["kernel"][0]), float(state[2].ema["ffn"]["up"]["kernel"][0])))
    return found


def test_the_recorded_trace_of_the_specification_is_reproduced():
    optimizer = RMSProp(schedule=Constant(value=0.01)).build(4, SCALAR)  # 768 / 3072 = 0.25
    found = trace(optimizer, (1.0, 0.5, -0.25, 4.0), 1.0)
    np.testing.assert_allclose([theta for theta, _ in found], [0.9995590, 0.9990447, 0.9985886, 0.9980147], atol=1e-7)
    np.testing.assert_allclose([m for _, m in found], [0.05, 0.079369, 0.056148, 0.103341], atol=1e-6)


def random_tree(seed, scale=1.0):
    random = np.random.default_rng(seed)
    shapes = {("blocks", "attention", n): (3, 4, 2 if n == "q" else 1) for n in "qkv"}
    tree = {"blocks": {"attention": {}, "ffn": {"up": {"kernel": random.normal(size=(3, 4, 5)) * scale}}}}
    for (_, _, n), shape in shapes.items():
        tree["blocks"]["attention"][n] = {"kernel": random.normal(size=shape) * scale}
    return {**tree, "embed": {"table": random.normal(size=(7, 4)) * scale}}


def paper(config, gradients, params, width):
    """The specification in float64, layer by layer, q, k and v of a layer as one block."""

    def flat(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}

    theta = flat(params)
    v, m = {n: 0.0 for n in theta}, {n: 0.0 for n in theta}
    rate = config.schedule.build(len(gradients))
    for t, g in enumerate(map(flat, gradients), start=1):
        u = {}
        for n in theta:
            v[n] = config.b2 * v[n] + (1 - config.b2) * (g[n] ** 2 + 1e-30)
            u[n] = g[n] / np.sqrt(v[n] / (1 - config.b2**t))
        groups = [[(f"blocks/attention/{n}/kernel", r) for n in "qkv"] for r in range(3)]
        groups += [[("blocks/ffn/up/kernel", r)] for r in range(3)] + [[("embed/table", slice(None))]]
        for group in groups:
            joined = np.concatenate([u[n][r].ravel() for n, r in group])
            for n, r in group:
                u[n][r] = u[n][r] / max(1.0, np.sqrt(np.mean(joined**2)) / config.update_clip)
        for n in theta:
            m[n] = config.b1 * m[n] + (1 - config.b1) * u[n]
            s = min(768 / width, 1.0) if n.startswith("blocks") else 1.0
            share = float(rate(t - 1)) / config.schedule.peak
            theta[n] = theta[n] - share * (config.schedule.peak * m[n] * s + config.weight_decay * theta[n])
    return theta


def run(optimizer, gradients, params):
    to_f32 = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    params, update = to_f32(params), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = update(to_f32(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_stacked_layers_and_joined_projections_equal_the_specification_layer_by_layer():
    config = RMSProp(schedule=WarmupCosine(peak=0.02, warmup_steps=2, end_ratio=0.005), update_clip=0.8)
    gradients, params = [random_tree(i, 10.0**i) for i in range(5)], random_tree(9)
    found, expected = run(config.build(5, Layout(AXES, 1536)), gradients, params), paper(config, gradients, params, 1536)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        np.testing.assert_allclose(leaf, expected[jax.tree_util.keystr(path, simple=True, separator="/")], rtol=2e-5, atol=1e-6)


def test_one_layer_of_a_stack_never_clips_another():
    config, gradients, params = RMSProp(schedule=Constant(value=0.01)), [random_tree(0), random_tree(1)], random_tree(9)
    plain = run(config.build(2, Layout(AXES, 768)), gradients, params)
    gradients[1]["blocks"]["ffn"]["up"]["kernel"][0] *= 1000
    spiked = run(config.build(2, Layout(AXES, 768)), gradients, params)
    kernels = [tree["blocks"]["ffn"]["up"]["kernel"] for tree in (plain, spiked)]
    np.testing.assert_array_equal(kernels[0][1:], kernels[1][1:])
    assert not np.array_equal(kernels[0][0], kernels[1][0])


def test_weight_decay_depends_on_the_schedule_but_on_neither_the_peak_nor_the_width():
    still, params = [jax.tree.map(np.zeros_like, random_tree(0))], random_tree(9)
    for peak, width in ((0.01, 768), (0.3, 8192)):
        found = run(RMSProp(schedule=Constant(value=peak)).build(1, Layout(AXES, width)), still, params)
        np.testing.assert_allclose(
            found["blocks"]["ffn"]["up"]["kernel"], params["blocks"]["ffn"]["up"]["kernel"] * (1 - 3.16e-4), rtol=1e-6
        )


@pytest.mark.parametrize(("width", "factor"), [(768, 1.0), (64, 1.0), (3072, 0.25), (8192, 0.09375)])
def test_the_factor_is_base_over_width_and_never_above_one(width, factor):
    assert MuPSimple().factor("blocks/0/attention/q/kernel", width) == factor
    assert MuPSimple().factor("embed/table", width) == 1.0


def test_the_factor_falls_on_hidden_matrices_alone():
    axes = build_model(tiny.qwen2_moe()).axes
    scaled = {name for name in Layout(axes, 0).stacked() if MuPSimple().factor(name, 1536) == 0.5}
    assert scaled == {f"blocks/0/attention/{n}/kernel" for n in "qkvo"} | {
        f"blocks/0/ffn/{part}" for n in ("gate", "up", "down") for part in (f"experts/{n}", f"shared/{n}/kernel")
    }
    stacked = {name for name, is_stacked in Layout(axes, 0).stacked().items() if is_stacked}
    assert stacked == {name for name in Layout(axes, 0).stacked() if name.startswith("blocks/")}


def test_adamw_under_mup_scales_its_updates_but_not_its_decay():
    gradients, params = [random_tree(0)], random_tree(9)
    rate = {"schedule": Constant(value=0.1)}
    plain = run(AdamW(**rate, weight_decay=0.0).build(1), gradients, params)
    halved = run(AdamW(**rate, weight_decay=0.5, mup=MuPSimple()).build(1, Layout(AXES, 1536)), gradients, params)
    for path, s in ((("blocks", "ffn", "up", "kernel"), 0.5), (("embed", "table"), 1.0)):
        before, moved, found = (functools.reduce(lambda t, k: t[k], path, tree) for tree in (params, plain, halved))
        np.testing.assert_allclose(found, before + s * (moved - before) - 0.1 * 0.5 * before, rtol=1e-5, atol=1e-6)
    same = run(AdamW(**rate, mup=MuPSimple()).build(1, Layout(AXES, 768)), gradients, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), same, run(AdamW(**rate).build(1), gradients, params))


def test_hyper_parameters_may_be_traced():
    def after(rate, decay):
        update = descend(lambda count: 1.0, learning_rate=rate, weight_decay=decay)
        params = jnp.ones(2)
        return params + update.update(jnp.ones(2), update.init(params), params)[0]

    found = jax.vmap(after)(jnp.array([0.1, 0.2]), jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(found[:, 0], [0.9, 0.3], rtol=1e-6)


def test_a_missing_layout_or_peak_is_one_sentence():
    with pytest.raises(ValueError, match="RMSProp needs the model's layout; call build"):
        RMSProp(schedule=Constant(value=0.01)).build(4)
    with pytest.raises(ValueError, match="AdamW with mup needs the model's layout"):
        AdamW(schedule=Constant(value=0.01), mup=MuPSimple()).build(4)
    with pytest.raises(ValueError, match="the schedule's peak is 0.0"):
        RMSProp(schedule=Constant(value=0.0)).build(4, SCALAR)
