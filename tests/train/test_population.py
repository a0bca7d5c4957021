"""Members of a population train as they would alone."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.core.types import Array, Metrics, Params, Terms, Weighted
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model, build_model
from lmx.objectives.lm import language_model
from lmx.optim import AdamW, Constant, Layout, RMSProp, WarmupCosine
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES
from lmx.train import population
from lmx.train.spec import TrainSpec
from lmx.train.state import state_from_params
from lmx.train.step import build_step

SEEDS, STEPS, BATCH, LENGTH = (0, 1), 7, 2, 8


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(
        tiny.llama3(32, model_dim=16, num_layers=1, q_heads=2, kv_heads=1, head_dim=8, ffn_dim=16, max_length=LENGTH, lengthening=1)
    )


@pytest.fixture(scope="module")
def batches() -> LMBatch:
    """[S, N, B, T]"""
    tokens = np.random.default_rng(0).integers(0, 32, (len(SEEDS), STEPS, BATCH, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    mask = np.broadcast_to(np.arange(LENGTH) < LENGTH - 1, tokens.shape)
    return LMBatch(tokens, np.roll(tokens, -1, axis=-1), mask, np.ones_like(tokens), positions)


def spec_of(model: Model, batches: LMBatch, optimizer: AdamW | RMSProp) -> TrainSpec:
    return TrainSpec(
        model=model,
        objective=language_model(model.apply),
        optimizer=optimizer.build(STEPS, Layout(model.axes, model.config.model_dim)),
        batch_spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype), batches),
        mesh=build_mesh(MeshConfig(), jax.devices()[:1]),
        rules=DEFAULT_RULES,
    )


SCHEDULES = (Constant(value=1e-2), WarmupCosine(peak=3e-2, warmup_steps=2))


def test_each_member_is_what_it_would_be_alone(model: Model, batches: LMBatch) -> None:
    trained = population.train(
        spec_of(model, batches, AdamW(schedule=Constant(value=1.0))),
        population.initial(model, SEEDS, arms=2),
        batches,
        rates=population.rates(SCHEDULES, STEPS),
        chunk=3,
        snapshots=(0, 4),
    )
    for arm, schedule in enumerate(SCHEDULES):
        spec = spec_of(model, batches, AdamW(schedule=schedule))
        step = build_step(spec)
        for number, seed in enumerate(SEEDS):
            state = state_from_params(spec, model.init(jax.random.key(seed)), jax.random.key(0))
            losses = []
            for i in range(STEPS):
                if i == 4:
                    assert_close(member(trained.snapshots[4], arm, number), state.params)
                state, metrics = step(state, {}, jax.tree.map(lambda x, n=number, i=i: x[n, i], batches))
                losses.append(float(metrics["loss"].mean()))
            assert_close(member(trained.params, arm, number), state.params)
            np.testing.assert_allclose(trained.metrics["loss"][arm, number], losses, rtol=1e-5)
    assert_close(member(trained.snapshots[0], 1, 1), model.init(jax.random.key(1)))


def test_an_optimizer_whose_decay_is_apart_follows_its_rate_too(model: Model, batches: LMBatch) -> None:
    rate, decay = 1e-2, 3e-4
    own = RMSProp(schedule=Constant(value=rate), weight_decay=decay, mup=None)
    scaled = RMSProp(schedule=Constant(value=1.0), weight_decay=decay / rate, mup=None)
    params = population.initial(model, SEEDS)
    first, second = (
        population.train(spec_of(model, batches, optimizer), params, batches, rates=np.full((1, STEPS), factor, np.float32))
        for optimizer, factor in ((own, 1.0), (scaled, rate))
    )
    assert_close(first.params, second.params)


def test_knobs_differ_by_arm_and_frozen_values_by_seed(model: Model, batches: LMBatch) -> None:
    def objective(params: Params, frozen: Mapping[str, Params], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        one = jnp.ones((), jnp.float32)
        loss = jnp.sum(jax.tree.leaves(params)[0])
        return {"loss": (1.0, Weighted(loss * 0, one))}, {"seen": Weighted(frozen["knob"] * 100 + frozen["of_seed"], one)}

    trained = population.train(
        dataclasses.replace(spec_of(model, batches, AdamW(schedule=Constant(value=1.0))), objective=objective),
        population.initial(model, SEEDS, arms=3),
        batches,
        rates=np.zeros((3, STEPS), np.float32),
        knobs={"knob": np.array([1.0, 2.0, 3.0], np.float32)},
        frozen={"of_seed": np.array([5.0, 7.0], np.float32)},
    )
    np.testing.assert_array_equal(trained.metrics["seen"][:, :, -1], [[105, 107], [205, 207], [305, 307]])


def test_arms_may_have_batches_of_their_own(model: Model, batches: LMBatch) -> None:
    twice = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batches)  # the second arm has the seeds' data the other way round
    spec = spec_of(model, batches, AdamW(schedule=Constant(value=1.0)))
    rates = np.full((2, STEPS), 1e-2, np.float32)
    first = jax.tree.map(lambda x: x[0, :1].repeat(2, axis=0), population.initial(model, SEEDS))  # one start for both seeds
    same_start = population.repeated(first, 2)
    trained = population.train(spec, same_start, twice, rates=rates, own_batches=True)
    assert_close(member(trained.params, 0, 0), member(trained.params, 1, 1))
    assert_close(member(trained.params, 0, 1), member(trained.params, 1, 0))
    assert not np.allclose(trained.metrics["loss"][0, 0], trained.metrics["loss"][1, 0])


def test_evaluation_agrees_with_a_loop(model: Model, batches: LMBatch) -> None:
    params = population.initial(model, SEEDS, arms=1)
    shared = jax.tree.map(lambda x: x[0], batches)
    losses = population.evaluate(partial(token_losses, model), params, shared)
    for number in range(len(SEEDS)):
        for i in range(STEPS):
            alone = token_losses(model, member(params, 0, number), jax.tree.map(lambda x, i=i: x[i], shared))
            np.testing.assert_allclose(losses[0, number, i], alone, rtol=1e-5, atol=1e-6)
    where = shared.positions >= 4
    expected = losses[0, 1][shared.loss_mask & where].mean()
    np.testing.assert_allclose(population.mean_over_tokens(losses, shared, where)[0, 1], expected, rtol=1e-6)


def test_two_halves_with_the_state_handed_on_are_the_whole_run(model: Model, batches: LMBatch) -> None:
    spec, rates = spec_of(model, batches, AdamW(schedule=Constant(value=1.0))), population.rates(SCHEDULES, STEPS)
    params = population.initial(model, SEEDS, arms=2)
    whole = population.train(spec, params, batches, rates=rates)
    first, second = (jax.tree.map(lambda x, part=part: x[:, part], batches) for part in (slice(4), slice(4, None)))
    half = population.train(spec, params, first, rates=rates[:, :4], snapshots=(2, 4), keep_states=True)
    assert set(half.states) == {2, 4}
    assert_close(half.states[2].params, half.snapshots[2])
    rest = population.train(spec, half.params, second, rates=rates[:, 4:], start=half.states[4])
    assert_close(rest.params, whole.params)
    fresh = population.train(spec, half.params, second, rates=rates[:, 4:])
    assert not np.allclose(jax.tree.leaves(fresh.params)[0], jax.tree.leaves(whole.params)[0], atol=1e-5)


@pytest.mark.parametrize("rates", [np.ones((3, STEPS)), np.ones((2, STEPS + 1))])
def test_axes_that_do_not_fit_are_refused(model: Model, batches: LMBatch, rates: np.ndarray) -> None:
    spec = spec_of(model, batches, AdamW(schedule=Constant(value=1.0)))
    params = jax.tree.map(lambda leaf: np.zeros((2, len(SEEDS), *leaf.shape), leaf.dtype), model.abstract_params())
    with pytest.raises(ValueError, match="leading axes"):
        population.train(spec, params, batches, rates=rates)


def token_losses(model: Model, params: Params, batch: LMBatch) -> Array:
    return head.token_loss(model.apply(params, batch), partial(likelihood.cross_entropy, labels=batch.labels))


def member(params: Params, arm: int, seed: int) -> Params:
    return jax.tree.map(lambda x: x[arm, seed], params)


def assert_close(found: Params, expected: Params) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, expected)
