"""Learned masks: what the masked model computes, how its parts are trained, and that the child is what was trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.kernels import head
from lmx.model.decoder import build_model
from lmx.optim import AdamW, Constant
from lmx.optim.layout import Layout
from lmx.pruning import learned
from lmx.pruning.learned import MaskOptimizer, MaskSchedule
from lmx.pruning.soft_top_k import soft_top_k

STEPS = 20


def with_scores(config, params, target, schedule, *, clock, std=1.0):
    widths = learned.pruned_widths(config, target)
    wide = dataclasses.replace(schedule, init_std=std)
    found = learned.with_masks(params, jax.random.key(3), widths, config.num_repeats, wide)
    found[learned.MASKS][learned.CLOCK] = jnp.float32(clock)
    return found


def test_the_schedule_is_geometric_in_eps_and_linear_in_k():
    schedule = MaskSchedule(anneal=0.2)
    np.testing.assert_allclose([schedule.eps(p) for p in (0, 0.5, 1, 2)], [1, np.sqrt(0.02), 0.02, 0.02], rtol=1e-5)
    np.testing.assert_allclose([schedule.kept(p, 12, 5) for p in (0, 0.1, 0.2, 1)], [11, 8, 5, 5], rtol=1e-6)
    assert MaskSchedule().kept(0, 12, 5) == 5


def test_the_mask_multiplies_the_hidden_units(get, resized, batch):
    config, params = get("llama3")
    target, schedule = resized(config, ffn_dim=5), MaskSchedule()
    masked = learned.masked_model(build_model(config), target, schedule, steps=STEPS)
    found = with_scores(config, params, target, schedule, clock=10)
    weights = soft_top_k(found["masks"]["scores"]["0"], 5, schedule.eps(0.5))
    up = params["blocks"]["0"]["ffn"]["up"]["kernel"] * weights[:, None, :]  # W_down (w * h), the other way round
    ffn = params["blocks"]["0"]["ffn"] | {"up": {"kernel": up}}
    by_hand = {**params, "blocks": {"0": params["blocks"]["0"] | {"ffn": ffn}}}
    logits = [head.logits(masked.apply(found, batch)), head.logits(build_model(config).apply(by_hand, batch))]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "afm"])
def test_when_the_masks_are_hard_the_child_equals_the_masked_parent(name, get, resized, batch, logits_of):
    config, params = get(name)
    target, schedule = resized(config, ffn_dim=5), MaskSchedule(last_eps=1e-3)
    found = with_scores(config, params, target, schedule, clock=STEPS)
    masked = learned.masked_model(build_model(config), target, schedule, steps=STEPS)
    child = learned.harden(found, config, target, schedule)
    valid = np.asarray(batch.segment_ids)[..., None] > 0
    parent = np.where(valid, head.logits(jax.jit(masked.apply)(found, batch)), 0)
    np.testing.assert_allclose(logits_of(target, child, batch), parent, rtol=1e-5, atol=1e-5)


def test_kept_rows_carry_their_last_weights(get, resized):
    config, params = get("qwen2")
    target, schedule = resized(config, ffn_dim=5), MaskSchedule(last_eps=0.5)
    found = with_scores(config, params, target, schedule, clock=STEPS)
    child = learned.harden(found, config, target, schedule)
    scores = found["masks"]["scores"]["0"]
    weights = np.asarray(soft_top_k(scores, 5, 0.5))
    for layer in range(config.num_layers):
        ids = np.sort(np.argsort(-np.asarray(scores[layer]))[:5])
        down = np.asarray(params["blocks"]["0"]["ffn"]["down"]["kernel"][layer])[ids] * weights[layer, ids, None]
        np.testing.assert_allclose(child["blocks"]["0"]["ffn"]["down"]["kernel"][layer], down, rtol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_scores_learn_faster_the_clock_counts_and_the_model_may_stand_still(get, resized, batch, frozen):
    config, params = get("llama3")
    target, schedule = resized(config, ffn_dim=5), MaskSchedule()
    masked = learned.masked_model(build_model(config), target, schedule, steps=STEPS, frozen=frozen)
    rate = AdamW(schedule=Constant(value=1e-3), weight_decay=0.0)
    optimizer = MaskOptimizer(model=rate, multiplier=10, frozen=frozen).build(STEPS, Layout(masked.axes, 16))
    found = with_scores(config, params, target, schedule, clock=0, std=0.01)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean(head.logits(masked.apply(p, batch)) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, gradient

    state = optimizer.init(found)
    after, state, gradient = step(found, state)
    assert after["masks"]["clock"] == 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, found)
    assert moved["masks"]["scores"]["0"] == pytest.approx(1e-2, rel=1e-2)
    own = {name: value for name, value in moved.items() if name != "masks"}
    assert max(jax.tree.leaves(own)) == pytest.approx(0.0 if frozen else 1e-3, rel=1e-2)
    if not frozen:
        alone = rate.build(STEPS, Layout(build_model(config).axes, 16))
        grads = {name: value for name, value in gradient.items() if name != "masks"}
        updates, _ = alone.update(grads, alone.init(params), params)
        expected = optax.apply_updates(params, updates)
        actual = {name: value for name, value in after.items() if name != "masks"}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


def test_softness_vanishes_with_eps(get, resized):
    config, params = get("llama3")
    target = resized(config, ffn_dim=5)
    widths = learned.pruned_widths(config, target)
    soft, hard = (
        learned.softness(with_scores(config, params, target, MaskSchedule(), clock=c)["masks"], widths, MaskSchedule(), STEPS)
        for c in (0, STEPS)
    )
    assert soft > 0.3 and hard < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda get, resized: resized(get("llama3")[0], num_layers=2), "masks are learned on the width of FFNs"),
        (lambda get, resized: get("llama3")[0], "there is nothing to prune"),
        (lambda get, resized: resized(get("llama3")[0], ffn_dim=13), "with a smaller ffn_dim"),
    ],
)
def test_targets_that_masks_cannot_reach_are_refused(get, resized, make, message):
    with pytest.raises(ValueError, match=message):
        learned.pruned_widths(get("llama3")[0], make(get, resized))


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match=r"first_eps=0\.01 must be at least last_eps=0\.02"):
        MaskSchedule(first_eps=0.01)
    with pytest.raises(ValueError, match="anneal=1"):
        MaskSchedule(anneal=1)
