import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.models import tiny
from lmx.core.types import Weighted
from lmx.data.batches import lm_batch_spec, preference_batch_spec
from lmx.losses.preference import dpo_loss
from lmx.model.decoder import build_model
from lmx.objectives import language_model, preference
from lmx.train.state import abstract_state, init_state
from lmx.train.step import build_eval_step, build_step

KEY = jax.random.key(0)
SGD = {"optimizer": optax.sgd(1.0), "clip_norm": None}  # parameters move by the gradient itself


def means(metrics):
    return {name: float(metric.mean()) for name, metric in metrics.items()}


@pytest.fixture
def one_step(start):
    def run(spec, batch):
        state, metrics = build_step(spec)(start(spec), {}, batch)
        return jax.device_get(state), means(metrics)

    return run


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accumulation_does_not_change_loss_gradient_or_metrics_however_uneven_the_masks(make_spec, make_batch, dtype, one_step):
    whole, parts = (one_step(make_spec(**SGD, microbatches=n, dtype=dtype), make_batch()) for n in (1, 4))
    tolerance = 1e-6 if dtype == "float32" else 2e-2  # bfloat16 rounds each microbatch's gradient
    del whole[1]["noise"], parts[1]["noise"]  # each microbatch has a key of its own
    assert_close(whole, parts, tolerance)


def test_each_terms_denominator_is_that_of_the_whole_batch(make_spec, make_batch, start):
    spec, batch = make_spec(microbatches=4), make_batch()
    state = start(spec)
    terms, _ = spec.objective(state.params, {}, batch, KEY)
    expected = sum(coefficient * term.total / term.weight for coefficient, term in terms.values())
    weights = [[int(mask[i::4].sum()) for i in range(4)] for mask in (batch.loss_mask, batch.segment_ids.any(1))]
    assert all(len(set(parts)) > 1 for parts in weights)  # uneven, and differently for the two terms
    assert means(build_step(spec)(state, {}, batch)[1])["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_microbatch_i_takes_every_nth_row_from_i(make_spec, make_batch, one_step):
    seen = []

    def spying(params, frozen, batch, key):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), batch.tokens, ordered=True)
        total = jnp.sum(params["ffn"]["up"])
        return {"sum": (1.0, Weighted(total, jnp.ones(())))}, {}

    batch = make_batch()
    one_step(make_spec(objective=spying, microbatches=2), batch)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[-2:], [batch.tokens[0::2], batch.tokens[1::2]])


def test_the_pass_for_the_weights_costs_no_matrix_product(make_spec):
    """A loop's body counts once in XLA's estimate, so four microbatches must cost a quarter of the whole batch."""
    lowered = [
        build_step(spec).lower(abstract_state(spec), {}, spec.batch_spec) for spec in (make_spec(), make_spec(microbatches=4))
    ]
    products = [text.as_text().count("stablehlo.dot_general") for text in lowered]
    flops = [text.compile().cost_analysis()["flops"] for text in lowered]
    assert products[0] == products[1] > 0
    assert flops[1] < 0.5 * flops[0]  # a second forward pass of all rows would alone cost a third


@pytest.mark.parametrize("pairs", [False, True])
def test_for_a_decoder_too_the_weights_cost_no_matrix_product(make_spec, pairs):
    model = build_model(tiny.qwen2_moe(16, model_dim=16, num_layers=2, head_dim=4, ffn_dim=8, num_experts=4, max_length=8))
    fields = {"model": model, "objective": language_model(model.apply), "batch_spec": lm_batch_spec(4, 8)}
    if pairs:
        objective = preference(model.apply, model.apply, loss=partial(dpo_loss, beta=0.1))
        fields |= {"objective": objective, "batch_spec": preference_batch_spec(4, 8), "frozen_models": {"reference": model}}
    counts = []
    for microbatches in (1, 2):
        spec = make_spec(**fields, microbatches=microbatches)
        frozen = {name: model.abstract_params() for name in spec.frozen_models}
        counts.append(
            build_step(spec).lower(abstract_state(spec), frozen, spec.batch_spec).as_text().count("stablehlo.dot_general")
        )
    assert counts[0] == counts[1] > 0


def test_the_gradient_is_clipped_to_the_norm_and_reported_before(make_spec, make_batch, start, one_step):
    free, free_metrics = one_step(make_spec(**SGD), make_batch())
    clipped, metrics = one_step(make_spec(optimizer=optax.sgd(1.0), clip_norm=0.01), make_batch())
    start = start(make_spec(**SGD)).params
    gradient, update = (jax.tree.map(np.subtract, start, state.params) for state in (free, clipped))
    assert metrics["grad_norm"] == free_metrics["grad_norm"] == pytest.approx(float(optax.global_norm(gradient)), rel=1e-5)
    assert optax.global_norm(update) == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_within_the_norm_is_left_alone(make_spec, make_batch, one_step):
    free, wide = (one_step(make_spec(optimizer=optax.sgd(1.0), clip_norm=norm), make_batch())[0] for norm in (None, 1e3))
    jax.tree.map(np.testing.assert_array_equal, free.params, wide.params)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_step_leaves_parameters_and_optimizer_bit_for_bit_and_is_counted(
    make_spec, make_batch, microbatches, value, start
):
    def poisoned(params, frozen, batch, key):
        poison = jnp.where(jnp.any(batch.tokens == 99), value, 1.0)
        return {"sum": (1.0, Weighted(poison * jnp.sum(jnp.square(params["ffn"]["up"])), jnp.ones(())))}, {}

    spec, batch = make_spec(objective=poisoned, microbatches=microbatches), make_batch()
    step = build_step(spec)
    state, _ = step(start(spec), {}, batch)
    before = jax.device_get(state)
    bad = dataclasses.replace(batch, tokens=np.where(np.arange(8)[:, None] == 3, np.int32(99), batch.tokens))
    state, metrics = step(state, {}, bad)
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), (state.params, state.opt_state))
    assert (state.step, state.skipped, means(metrics)["skipped"]) == (2, 1, 1.0)
    state, metrics = step(state, {}, batch)
    assert (state.step, state.skipped, means(metrics)["skipped"]) == (3, 1, 0.0)
    assert not np.array_equal(state.params["ffn"]["up"], before.params["ffn"]["up"])


def test_the_contents_of_padding_change_nothing(make_spec, make_batch, one_step):
    batch = make_batch()
    masked = lambda x: np.where(batch.segment_ids > 0, x, (x + 5) % 16)  # noqa: E731
    labels = np.where(batch.loss_mask, batch.labels, (batch.labels + 3) % 16)
    changed = dataclasses.replace(batch, tokens=masked(batch.tokens), labels=labels)
    model = make_spec().model
    spec = make_spec(objective=language_model(model.apply), **SGD)
    (state, metrics), (other, other_metrics) = one_step(spec, batch), one_step(spec, changed)
    jax.tree.map(np.testing.assert_array_equal, state, other)
    assert metrics == other_metrics


def test_the_loss_falls_on_a_repeating_batch_through_one_compilation(make_spec, make_batch):
    traces = []
    plain = make_spec()

    def counted(*args):
        traces.append(1)
        return plain.objective(*args)

    spec = make_spec(objective=counted, microbatches=2, optimizer=optax.adam(0.1))
    step, state, batch = build_step(spec), init_state(spec, KEY), make_batch()
    losses, at_first = [], None
    for _ in range(20):
        state, metrics = step(state, {}, batch)
        at_first = at_first or len(traces)
        losses.append(metrics["loss"].mean())
    assert losses[-1] < 0.5 * losses[0]
    assert len(traces) == at_first
    assert state.step == 20 and state.skipped == 0


def test_the_states_buffers_are_donated(make_spec, make_batch):
    spec = make_spec()
    state = init_state(spec, KEY)
    build_step(spec)(state, {}, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_random_numbers_differ_by_step_and_microbatch_and_repeat_with_the_key(make_spec, make_batch, start):
    def noisy(params, frozen, batch, key):
        noise = Weighted(jax.random.normal(key), jnp.ones(()))
        return {"sum": (1.0, Weighted(jnp.sum(params["ffn"]["up"]), jnp.ones(())))}, {"noise": noise}

    specs = [make_spec(objective=noisy, microbatches=microbatches) for microbatches in (1, 2)]
    steps = [build_step(spec) for spec in specs]

    def run(seed):
        for spec, step in zip(specs, steps, strict=True):
            state = start(spec, seed)
            for _ in range(2):
                state, metrics = step(state, {}, make_batch())
                yield float(metrics["noise"].total)

    first = list(run(0))
    assert len(set(first)) == 4
    assert first == list(run(0)) and first != list(run(1))


OPTIMIZERS = {
    "adafactor": optax.adafactor(0.01),
    "reads the loss": optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau()),
    "holds parameters": optax.contrib.schedule_free_adamw(0.01),
    "random": optax.noisy_sgd(0.01, key=jax.random.key(0)),
    "several steps": optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optax_transformation_trains(make_spec, make_batch, name, start):
    spec = make_spec(optimizer=OPTIMIZERS[name], dtype="bfloat16")
    step, state = build_step(spec), start(spec)
    before, abstract = state.params, jax.tree.map(lambda x: (x.shape, x.dtype), abstract_state(spec))
    for _ in range(2):
        state, metrics = step(state, {}, make_batch())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == abstract
    assert metrics["skipped"].total == 0 and not np.array_equal(before["ffn"]["up"], state.params["ffn"]["up"])


@pytest.mark.parametrize("microbatches", [1, 4])
def test_evaluation_reports_the_loss_of_the_train_step_and_changes_nothing(make_spec, make_batch, microbatches, start):
    spec, batch = make_spec(microbatches=microbatches), make_batch()
    state = start(spec)
    metrics = means(build_eval_step(spec)(state.params, {}, batch))
    _, trained = build_step(spec)(state, {}, batch)
    for name in ("loss", "nll", "tokens"):
        assert metrics[name] == pytest.approx(means(trained)[name], rel=1e-5)
    assert metrics["tokens"] == (batch.segment_ids > 0).sum()


def test_the_mean_of_evaluated_losses_over_batches_is_exact_for_one_mask(make_spec, make_batch, start):
    model = make_spec().model
    spec = make_spec(objective=language_model(model.apply))
    step, params = build_eval_step(spec), start(spec).params
    first, second = (step(params, {}, make_batch(seed)) for seed in (1, 2))
    assert first["loss"].weight != second["loss"].weight
    assert (first["loss"] + second["loss"]).mean() == pytest.approx(float((first["nll"] + second["nll"]).mean()), rel=1e-6)
