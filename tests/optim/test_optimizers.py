from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.optim.layout import Layout
from lmx.optim.optimizers import AdamW, Custom, handed_on, in_float32
from lmx.optim.rmsprop import RMSProp
from lmx.optim.schedules import Constant, WarmupLinear

PARAMS = {"norm": {"gain": jnp.array([1.0, 2.0])}, "q": {"kernel": jnp.array([[0.5, -1.0]])}}
GRADS = {"norm": {"gain": jnp.array([0.1, -0.2])}, "q": {"kernel": jnp.array([[1.0, 3.0]])}}


def run(optimizer, steps, params=PARAMS, grads=GRADS):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_adamw_equals_the_paper_in_float64():
    rate, b1, b2, eps, decay = 0.1, 0.9, 0.95, 1e-8, 0.2
    config = AdamW(schedule=Constant(value=rate), b1=b1, b2=b2, eps=eps, weight_decay=decay)
    params, _ = run(config.build(10), 3)
    theta, m, v = np.array([0.5, -1.0]), 0.0, 0.0
    grad = np.array([1.0, 3.0])
    for t in range(1, 4):
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        theta = theta - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * theta)
    np.testing.assert_allclose(params["q"]["kernel"][0], theta, rtol=1e-6)


def test_weight_decay_leaves_gains_alone_unless_told():
    still = jax.tree.map(jnp.zeros_like, GRADS)
    plain, _ = run(AdamW(schedule=Constant(value=0.1), weight_decay=0.5).build(10), 1, grads=still)
    every, _ = run(AdamW(schedule=Constant(value=0.1), weight_decay=0.5, no_decay=None).build(10), 1, grads=still)
    np.testing.assert_array_equal(plain["norm"]["gain"], PARAMS["norm"]["gain"])
    np.testing.assert_allclose(plain["q"]["kernel"], 0.95 * PARAMS["q"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(every["norm"]["gain"], 0.95 * PARAMS["norm"]["gain"], rtol=1e-6)


@pytest.mark.parametrize("make", [partial(optax.lion, b1=0.95), optax.adafactor, partial(optax.sgd, momentum=0.9)])
def test_a_custom_optimizer_is_any_of_optax(make):
    config = Custom(make=make, schedule=WarmupLinear(peak=0.1, warmup_steps=2))
    ours, _ = run(config.build(8), 3)
    theirs, _ = run(make(learning_rate=config.learning_rate(8)), 3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_learning_rate_is_that_of_the_schedule():
    schedule = WarmupLinear(peak=0.1, warmup_steps=2)
    for config in (AdamW(schedule=schedule), Custom(make=optax.sgd, schedule=schedule)):
        assert config.learning_rate(8)(2) == pytest.approx(0.1)


def test_moments_of_bfloat16_parameters_are_float32():
    params, grads = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (PARAMS, GRADS))
    optimizer = in_float32(AdamW(schedule=Constant(value=0.1)).build(10))
    params, state = run(optimizer, 2, params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_a_second_moment_in_float32_moves_where_one_in_bfloat16_would_not():
    params, grads = {"w": jnp.ones(1, jnp.bfloat16)}, {"w": jnp.full(1, 1.0, jnp.bfloat16)}
    _, state = run(in_float32(optax.scale_by_adam(b2=0.999)), 100, params, grads)
    np.testing.assert_allclose(state.nu["w"], 1 - 0.999**100, rtol=1e-4)


def test_float32_changes_nothing_of_a_float32_run_nor_its_arguments():
    optimizer = optax.adamw(0.1)
    jax.tree.map(np.testing.assert_array_equal, run(in_float32(optimizer), 2)[0], run(optimizer, 2)[0])
    plateau = optax.contrib.reduce_on_plateau(patience=1)
    _, state = in_float32(plateau).update(GRADS, in_float32(plateau).init(PARAMS), PARAMS, value=jnp.array(3.0))
    assert state.best_value == 3.0


@pytest.mark.parametrize("make", [AdamW, RMSProp])
def test_a_state_that_is_handed_on_keeps_mean_squares_and_starts_its_schedule_anew(make):
    axes = {"norm": {"gain": ("embed",)}, "q": {"kernel": ("embed", None)}}
    optimizer = make(schedule=WarmupLinear(peak=0.1, warmup_steps=2)).build(8, Layout(axes, 8))
    _, state = run(optimizer, 3)
    for momentum in (True, False):
        after = handed_on(state, momentum=momentum)
        counts = {jax.tree_util.keystr(path): int(leaf) for path, leaf in jax.tree.leaves_with_path(after) if leaf.dtype == "int32"}
        assert sorted(counts.values())[0] == 0 and set(counts.values()) == {0, 3}
        before, kept = ([x for x in jax.tree.leaves(s) if x.dtype == "float32"] for s in (state, after))
        same = [bool((x == y).all()) for x, y in zip(before, kept, strict=True)]
        assert all(same) if momentum else same.count(True) == 2 and same.count(False) == 2
        assert jax.tree.structure(after) == jax.tree.structure(state)
