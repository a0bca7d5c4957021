"""Runs whose batches change their shape, runs that end at a gate, and runs that return an average: each exact through restarts."""

import dataclasses
import signal

import chex
import jax
import numpy as np
import optax
import pytest

from lmx import merging
from lmx.core import storage
from lmx.core.errors import RunError
from lmx.data.batches import LMBatch
from lmx.data.ramp import Phase, Ramp
from lmx.train import step as train_step
from lmx.train.averages import Checkpoints
from lmx.train.config import LoopConfig
from lmx.train.loop import Interrupted
from lmx.train.shapes import Shapes, resized
from lmx.train.state import init_state, state_from_params
from lmx.train.step import build_step
from tests.fixtures import toy_run

CONFIG = LoopConfig(steps=12, log_every=5, checkpoint_every=4)
RAMP = Ramp(
    (
        Phase(from_tokens=0, batch_size=4, length=8),
        Phase(from_tokens=96, batch_size=4, length=16),
        Phase(from_tokens=288, batch_size=8, length=16, microbatches=2),
        Phase(from_tokens=544, batch_size=4, length=16),
    )
)  # after 3, 6 and 8 steps


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


class RampLoader(toy_run.Loader):
    """The toy's batches in the shapes of the ramp; every token counts."""

    def __next__(self):
        phase = RAMP.phases[RAMP.index(self.number)]
        super().__next__()
        random = np.random.default_rng((self.seed, self.number))
        tokens = random.integers(0, toy_run.VOCAB, (phase.batch_size, phase.length + 1), dtype=np.int32)
        ones = np.ones((phase.batch_size, phase.length), np.int32)
        positions = np.tile(np.arange(phase.length, dtype=np.int32), (phase.batch_size, 1))
        return LMBatch(tokens[:, :-1], (tokens[:, 1:] * 3 + 1) % toy_run.VOCAB, ones > 0, ones, positions)


def ramped(workdir, *, signals=None, config=CONFIG, **kwargs):
    return toy_run.run(workdir, config, loader=RampLoader(signals=signals), evaluate=False, ramp=RAMP, **kwargs)


def timeless(workdir):
    records = storage.read_json_lines(workdir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ramp")
    return workdir, ramped(workdir)


def test_the_state_goes_through_the_shapes_as_if_each_step_were_made_by_hand(whole):
    spec, loader = toy_run.make_spec(), RampLoader()
    state = init_state(spec, jax.random.key(1))
    compiled = [build_step(resized(spec, phase)) for phase in RAMP.phases]
    for number in range(12):
        state, _ = compiled[RAMP.index(number)](state, {}, next(loader))
    jax.tree.map(np.testing.assert_array_equal, whole[1].params, state.params)
    assert int(state.opt_state[0].count) == 12
    assert whole[1].tokens == RAMP.tokens(12)


def test_tokens_are_logged_at_the_exact_marks(whole):
    logged = {record["step"]: record["train/tokens"] for record in timeless(whole[0])}
    assert logged == {step: RAMP.tokens(step) for step in (5, 10, 12)}


@pytest.mark.parametrize("batch", [2, 3, 4, 7, 9])
def test_a_run_stopped_at_any_place_of_the_ramp_ends_as_one_that_was_not(tmp_path, whole, batch):
    with pytest.raises(Interrupted):
        ramped(tmp_path, signals={batch: signal.SIGTERM})
    result = ramped(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, (result.params, result.opt_state), (whole[1].params, whole[1].opt_state))
    assert timeless(tmp_path) == timeless(whole[0]) and result.tokens == whole[1].tokens


def test_each_shape_is_compiled_once(monkeypatch):
    monkeypatch.setattr(train_step, "train_step", chex.assert_max_traces(n=3)(train_step.train_step))
    chex.clear_trace_counter()
    shapes, loader = Shapes(toy_run.make_spec(), RAMP), RampLoader()
    state = init_state(shapes.spec(0), jax.random.key(1))
    for number in range(10):
        state, _ = shapes.step_fn(number)(state, {}, next(loader))
    assert shapes.step_fn(3) is shapes.step_fn(8) is not shapes.step_fn(7)


def test_a_change_of_shape_is_announced(tmp_path, caplog):
    with caplog.at_level("INFO", logger="lmx"):
        ramped(tmp_path, config=dataclasses.replace(CONFIG, steps=5))
    assert "steps 1 to 5 of 4 x 8 tokens, 4 x 16 from step 4, 8 x 16 from step 7, 4 x 16 from step 9" in caplog.text
    assert "toy: from step 4 on 4 x 16 tokens, 8 x 16 from step 7" in caplog.text


def test_a_batch_that_the_mesh_cannot_hold_is_refused_before_the_first_step(tmp_path):
    ramp, loader = Ramp((RAMP.phases[0], Phase(from_tokens=96, batch_size=3, length=8))), RampLoader()
    with pytest.raises(ValueError, match="a batch of 3 rows cannot be split into 1 microbatches over 2 devices"):
        toy_run.run(tmp_path, CONFIG, loader=loader, evaluate=False, ramp=ramp)
    assert loader.read == []


# ----- averages


def averaged_spec(average):
    return toy_run.make_spec(optimizer=merging.averaging(optax.adamw(0.03), average, CONFIG.steps))


@pytest.mark.parametrize("average", [merging.Uniform(last=6, every=2), merging.EMA(decay=0.8, start=3)])
def test_the_average_is_returned_evaluated_and_restored_bit_for_bit(tmp_path, average):
    config = dataclasses.replace(CONFIG, eval_every=6, eval_batches=2, keep_every=1, checkpoint_every=1)
    result = toy_run.run(tmp_path / "whole", config, spec=averaged_spec(average))
    plain = toy_run.run(tmp_path / "plain", config)
    assert result.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-5)
    assert result.metrics["eval/loss"] == pytest.approx(plain.metrics["eval/loss"], rel=1e-5)
    assert result.metrics["eval_average/loss"] != result.metrics["eval/loss"]
    with pytest.raises(Interrupted):
        toy_run.run(tmp_path / "cut", config, spec=averaged_spec(average), loader=toy_run.Loader(signals={9: signal.SIGTERM}))
    again = toy_run.run(tmp_path / "cut", config, spec=averaged_spec(average))
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.opt_state), (result.params, result.opt_state))
    if isinstance(average, merging.Uniform):
        offline = toy_run.run(tmp_path / "plain", config, average_steps=(8, 10, 12)).params
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), result.params, offline)


def test_an_average_shards_like_the_parameters():
    spec = averaged_spec(merging.EMA(decay=0.9))
    state = init_state(spec, jax.random.key(0))
    places = jax.tree.map(lambda x: x.sharding, (state.opt_state.mean, state.params))
    assert places[0] == places[1]


def test_checkpoints_to_average_are_those_that_are_kept_whatever_was_interrupted(tmp_path):
    config = dataclasses.replace(CONFIG, keep_last=1, keep_every=4)
    steps = Checkpoints(last=2).steps(config)
    assert steps == (8, 12)
    with pytest.raises(Interrupted):
        toy_run.run(tmp_path, config, evaluate=False, loader=toy_run.Loader(signals={9: signal.SIGTERM}))
    found = toy_run.run(tmp_path, config, evaluate=False, average_steps=steps)
    eight = toy_run.run(tmp_path / "8", dataclasses.replace(config, steps=8), evaluate=False).params
    twelve = toy_run.run(tmp_path / "12", config, evaluate=False).params
    jax.tree.map(np.testing.assert_array_equal, found.params, merging.mean([eight, twelve]))
    with pytest.raises(RunError, match="the checkpoints of steps 3, to be averaged, are not in .*; average steps"):
        toy_run.run(tmp_path, config, evaluate=False, average_steps=(3, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "need loop.keep_every, a multiple of loop.checkpoint_every=4, but it is None"),
        ({"keep_every": 6}, "need loop.keep_every, a multiple of loop.checkpoint_every=4, but it is 6"),
        ({"keep_every": 8}, "average.last=2 is more than the 1 checkpoints that loop.keep_every=8 keeps of 12 steps"),
    ],
)
def test_checkpoints_that_are_not_kept_cannot_be_averaged(changes, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(last=2).steps(dataclasses.replace(CONFIG, **changes))


# ----- gates


@dataclasses.dataclass
class OpensAtThird:
    """Opens when it is asked for the third time."""

    every: int = 3
    asked: int = 0

    def __call__(self, params):
        self.asked += 1
        return {"gate/asked": float(self.asked)}, self.asked == 3


def test_a_gate_ends_the_run_where_it_opens_and_a_restart_finds_it_open(tmp_path):
    gate = OpensAtThird()
    result = toy_run.run(tmp_path, CONFIG, evaluate=False, gate=gate)
    assert (result.step, result.opened, gate.asked) == (9, True, 3)
    again = toy_run.run(tmp_path, CONFIG, evaluate=False, gate=gate)
    assert (again.step, again.opened, gate.asked) == (9, True, 3)
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    assert [r["step"] for r in storage.read_json_lines(tmp_path / "metrics.jsonl") if "gate/asked" in r] == [3, 6, 9]


def test_a_gate_that_stays_shut_is_asked_at_the_last_step_too(tmp_path):
    gate = OpensAtThird(every=10)
    result = toy_run.run(tmp_path, CONFIG, evaluate=False, gate=gate)
    assert (result.step, result.opened, gate.asked) == (12, False, 2)


# ----- state handed on, steps dropped


def test_an_optimizer_state_is_handed_on_with_its_moments(tmp_path):
    first = toy_run.run(tmp_path / "a", CONFIG, evaluate=False)
    moments = jax.tree.map(np.array, first.opt_state)
    taken = {}

    class Loader(toy_run.Loader):
        def __next__(self):
            if self.number == 1:
                raise StopIteration
            return super().__next__()

    spec = toy_run.make_spec()
    result = toy_run.run(
        tmp_path / "b",
        dataclasses.replace(CONFIG, steps=1),
        evaluate=False,
        spec=spec,
        loader=Loader(),
        init_params=lambda: first.params,
        init_opt_state=lambda: taken.setdefault("state", first.opt_state),
    )
    state = dataclasses.replace(state_from_params(spec, first.params, jax.random.key(1)), opt_state=moments)
    expected, _ = build_step(spec)(state, {}, next(toy_run.Loader()))
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)
    assert taken and int(result.opt_state[0].count) == 13
    with pytest.raises(ValueError, match="the optimizer state is of another optimizer or model: "):
        toy_run.run(
            tmp_path / "c", CONFIG, evaluate=False, init_params=lambda: first.params, init_opt_state=lambda: optax.EmptyState()
        )


def test_a_step_with_too_large_a_gradient_is_dropped_counted_and_does_not_stop_the_run(tmp_path):
    spec = toy_run.make_spec()
    norms = [float(build_step(spec)(init_state(spec, jax.random.key(1)), {}, next(toy_run.Loader()))[1]["grad_norm"].total)]
    spec = dataclasses.replace(spec, drop_norm=norms[0])  # "reaches" includes equality
    state = init_state(spec, jax.random.key(1))
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    after, _ = build_step(spec)(state, {}, next(toy_run.Loader()))
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), before)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    result = toy_run.run(tmp_path, CONFIG, evaluate=False, spec=dataclasses.replace(spec, drop_norm=norms[0] / 100))
    assert result.skipped == 12 and "train/loss" not in result.metrics
