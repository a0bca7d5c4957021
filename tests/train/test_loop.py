"""The loop's bookkeeping: what it writes, when it stops, what it keeps."""

import dataclasses
import errno
import math

import jax
import numpy as np
import optax
import pytest

from lmx.core import storage
from lmx.core.errors import DiskFullError
from lmx.train.config import LoopConfig
from lmx.train.feed import DataExhaustedError
from lmx.train.loop import NonFiniteError
from lmx.train.state import init_state
from lmx.train.step import build_eval_step, build_step
from tests.fixtures import toy_run

PLAIN = LoopConfig(steps=12, log_every=4, checkpoint_every=4)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_loop_makes_exactly_the_steps_and_logs_exact_means(tmp_path):
    spec, loader = toy_run.make_spec(), toy_run.Loader()
    state, step, rows = init_state(spec, jax.random.key(1)), build_step(spec), []
    for _ in range(12):
        state, values = step(state, {}, next(loader))
        rows.append({name: (float(value.total), float(value.weight)) for name, value in values.items()})
    result = toy_run.run(tmp_path, PLAIN, evaluate=False)
    jax.tree.map(np.testing.assert_array_equal, result.params, state.params)
    records = storage.read_json_lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [4, 8, 12]
    for record, part in zip(records, (rows[:4], rows[4:8], rows[8:]), strict=True):
        for name in ("loss", "nll", "grad_norm"):
            assert record[f"train/{name}"] == sum(row[name][0] for row in part) / sum(row[name][1] for row in part)
        assert record["train/learning_rate"] == 0.03
        assert record["time/tokens_per_second"] > 0
    assert result.tokens == records[-1]["train/tokens"] == 12 * toy_run.ROWS * toy_run.LENGTH
    assert "time/mfu" not in result.metrics  # the peak of a CPU is unknown
    assert steps_on_disk(tmp_path) == [8, 12]


def test_evaluation_weighs_tokens_not_batches_and_always_reads_the_same_ones(tmp_path):
    config = dataclasses.replace(PLAIN, eval_every=6, eval_batches=3, eval_first=True)
    held_out = toy_run.Loader(seed=1, padded=True)
    spec = toy_run.make_spec()
    result = toy_run.train(
        spec, config, loader=toy_run.Loader(), run=toy_run.RunContext(workdir=tmp_path), key=jax.random.key(1), eval_loader=held_out
    )
    assert held_out.read == [1, 2, 3] * 3
    evaluate, batches = build_eval_step(spec), toy_run.Loader(seed=1, padded=True)
    sums = np.zeros(2)
    for _ in range(3):
        nll = evaluate(result.params, {}, next(batches))["nll"]
        sums += float(nll.total), float(nll.weight)
    assert result.metrics["eval/nll"] == sums[0] / sums[1]
    records = storage.read_json_lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if "eval/nll" in record] == [0, 6, 12]


def test_the_best_checkpoint_is_kept_and_returned(tmp_path):
    config = dataclasses.replace(
        PLAIN,
        steps=20,
        eval_every=5,
        eval_batches=3,
        checkpoint_every=3,
        keep_last=1,
        best_metric="eval/loss",
        best_mode="max",
        return_best=True,
    )
    result = toy_run.run(tmp_path, config)
    values = {
        record["step"]: record["eval/loss"]
        for record in storage.read_json_lines(tmp_path / "metrics.jsonl")
        if "eval/loss" in record
    }
    assert result.best.step == max(values, key=values.get) < 20
    assert result.best.value == max(values.values())
    assert steps_on_disk(tmp_path) == [result.best.step, 20]
    at_best = toy_run.run(tmp_path / "short", dataclasses.replace(PLAIN, steps=result.best.step), evaluate=False)
    jax.tree.map(np.testing.assert_array_equal, result.params, at_best.params)


def test_a_nonfinite_step_stops_the_run_with_step_position_and_last_good_checkpoint(tmp_path):
    expected = r'step 6 was not finite \(.*loss nan.*\); .*position \{"number": 5\}; last good checkpoint: .*checkpoints/4; lower'
    with pytest.raises(NonFiniteError, match=expected):
        toy_run.run(tmp_path, PLAIN, loader=toy_run.Loader(bad=(6,)), evaluate=False)
    assert storage.read_json(tmp_path / "nonfinite.json") == {"step": 6, "loader": {"number": 5}}
    assert steps_on_disk(tmp_path) == [4]


@pytest.mark.parametrize("asked_by", ["config", "optimizer"])
def test_a_nonfinite_step_is_skipped_and_counted_when_asked(tmp_path, asked_by):
    if asked_by == "config":
        config, spec = dataclasses.replace(PLAIN, nonfinite="skip"), toy_run.make_spec()
    else:
        config, spec = PLAIN, toy_run.make_spec(optimizer=optax.apply_if_finite(optax.adamw(0.03), max_consecutive_errors=5))
    result = toy_run.run(tmp_path, config, loader=toy_run.Loader(bad=(6, 7)), evaluate=False, spec=spec)
    assert result.skipped == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    records = storage.read_json_lines(tmp_path / "metrics.jsonl")
    assert [record["train/skipped"] for record in records] == [0, 2, 2]
    assert all(math.isfinite(record["train/loss"]) for record in records)


def test_starting_parameters_are_copied_so_that_a_reference_survives(tmp_path):
    spec = toy_run.make_spec(frozen=True)
    reference = toy_run.init(jax.random.key(5))
    before = jax.tree.map(np.array, reference)
    result = toy_run.run(tmp_path, PLAIN, spec=spec, frozen={"reference": reference}, init_params=lambda: reference, evaluate=False)
    jax.tree.map(np.testing.assert_array_equal, reference, before)
    assert not np.array_equal(result.params["embed"]["table"], before["embed"]["table"])

    def never():
        raise AssertionError("a finished run needs no starting parameters")

    toy_run.run(tmp_path, PLAIN, spec=spec, frozen={"reference": reference}, init_params=never, evaluate=False)


def test_data_that_ends_early_is_one_sentence(tmp_path):
    with pytest.raises(DataExhaustedError, match="toy: the training data ended after step 7 of 12; lower loop.steps or repeat"):
        toy_run.run(tmp_path, PLAIN, loader=toy_run.Loader(end=7), evaluate=False)


def test_an_error_in_the_loader_reaches_the_caller(tmp_path):
    class Broken(toy_run.Loader):
        def __next__(self):
            if self.number == 3:
                raise ValueError("record 3 is unreadable")
            return super().__next__()

    with pytest.raises(ValueError, match="record 3 is unreadable"):
        toy_run.run(tmp_path, PLAIN, loader=Broken(), evaluate=False)


def test_a_disk_that_fills_up_while_metrics_are_written_is_one_sentence(tmp_path, monkeypatch):
    append = storage.JsonLines.append

    def full_at_step_8(self, record):
        if record["step"] == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    monkeypatch.setattr(storage.JsonLines, "append", full_at_step_8)
    with pytest.raises(DiskFullError, match="toy: the disk is full, writing to .* failed .* earlier checkpoints are untouched"):
        toy_run.run(tmp_path, PLAIN, evaluate=False)
    assert steps_on_disk(tmp_path) == [4]


def test_a_profile_of_a_few_steps_is_written(tmp_path):
    toy_run.run(tmp_path, dataclasses.replace(PLAIN, steps=5, profile_steps=2), evaluate=False)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_metrics_are_fetched_after_the_first_step_and_at_log_lines_only(tmp_path, monkeypatch):
    fetched, device_get = [], jax.device_get
    monkeypatch.setattr("lmx.train.metrics.jax.device_get", lambda values: fetched.append(len(values)) or device_get(values))
    toy_run.run(tmp_path, dataclasses.replace(PLAIN, log_every=5, checkpoint_every=None), evaluate=False)
    per_step = [count for count in fetched if isinstance(count, int)]
    assert [count for count in per_step if count][:4] == [1, 4, 5, 2]


def test_what_comes_next_is_logged(tmp_path, caplog):
    with caplog.at_level("INFO", logger="lmx"):
        toy_run.run(tmp_path, dataclasses.replace(PLAIN, eval_every=6, eval_batches=1))
    assert "toy: steps 1 to 12 of 4 x 8 tokens, log every 4, next evaluation at step 6, next checkpoint at step 4" in caplog.text
    assert "toy: step 4/12  loss " in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "loop.steps=0 must be at least 1"),
        ({"checkpoint_every": 0}, "loop.checkpoint_every=0 must be at least 1, or None for off"),
        ({"best_metric": "eval/loss"}, "needs evaluations: set loop.eval_every"),
        ({"return_best": True}, "loop.return_best needs loop.best_metric"),
        ({"nonfinite": "ignore"}, "loop.nonfinite='ignore' is not one of 'stop', 'skip'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)


def test_evaluation_without_held_out_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loop.eval_every=3 needs held-out data"):
        toy_run.run(tmp_path, dataclasses.replace(PLAIN, eval_every=3), evaluate=False)


def test_a_best_metric_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    config = dataclasses.replace(PLAIN, eval_every=3, eval_batches=1, best_metric="eval/accuracy")
    with pytest.raises(ValueError, match="'eval/accuracy' is not among the held-out metrics: eval/loss, eval/nll"):
        toy_run.run(tmp_path, config)
