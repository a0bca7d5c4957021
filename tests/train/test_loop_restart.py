"""A run that is killed, stopped or restarted ends as one that was not: the same parameters and metrics, bit for bit."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from lmx.checkpoint.record import MismatchError
from lmx.core import storage
from lmx.core.errors import LockedError, RunError
from lmx.train.loop import Interrupted
from tests.fixtures import toy_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


def metrics(workdir):
    """The metrics file without times and speeds."""
    records = storage.read_json_lines(workdir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


def timeless(values):
    return {name: value for name, value in values.items() if not name.startswith("time/")}


def in_process(workdir, cache, number=0, batch=-1):
    """Runs the toy in a process of its own that signals itself when it reads a batch."""
    command = [sys.executable, str(ROOT / "tests/fixtures/toy_run.py"), str(workdir), "--cache", str(cache)]
    command += ["--signal", f"{int(number)}:{batch}"] if number else []
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, toy_run.run(workdir)


def assert_same_run(workdir, result, uninterrupted):
    reference_dir, reference = uninterrupted
    jax.tree.map(np.testing.assert_array_equal, result.params, reference.params)
    assert metrics(workdir) == metrics(reference_dir)
    assert (result.step, result.tokens, result.skipped, result.best) == (
        reference.step,
        reference.tokens,
        reference.skipped,
        reference.best,
    )
    assert timeless(result.metrics) == timeless(reference.metrics)


def test_killed_twice_and_terminated_once_it_ends_as_if_nothing_had_happened(tmp_path, cache, uninterrupted):
    first = in_process(tmp_path, cache, signal.SIGKILL, 3)  # before the first checkpoint
    second = in_process(tmp_path, cache, signal.SIGKILL, 17)
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 18, "train/lo')  # as a kill in the middle of a write would leave it
    third = in_process(tmp_path, cache, signal.SIGTERM, 20)
    assert third.returncode == 128 + signal.SIGTERM, third.stderr
    sentence = third.stderr.splitlines()[-1]
    assert sentence.startswith("toy: stopped by SIGTERM after step ")
    assert sentence.endswith("; run the same command again to go on from there")
    fourth = in_process(tmp_path, cache)
    assert fourth.returncode == 0, fourth.stderr
    with np.load(tmp_path / "params.npz") as saved:
        for leaf, expected in zip(saved.values(), jax.tree.leaves(uninterrupted[1].params), strict=True):
            np.testing.assert_array_equal(leaf, np.asarray(expected))
    assert_same_run(tmp_path, toy_run.run(tmp_path), uninterrupted)


@pytest.mark.parametrize("batch", [6, 10, 14])
def test_a_checkpoint_between_two_log_lines_carries_the_sums_since_the_last(tmp_path, uninterrupted, batch):
    with pytest.raises(Interrupted) as stopped:
        toy_run.run(tmp_path, loader=toy_run.Loader(signals={batch: signal.SIGTERM}))
    assert stopped.value.exit_code == 143
    assert_same_run(tmp_path, toy_run.run(tmp_path), uninterrupted)


def test_a_finished_run_returns_at_once_and_reads_no_batch(tmp_path, uninterrupted):
    loader = toy_run.Loader()
    result = toy_run.run(uninterrupted[0], loader=loader)
    assert loader.read == []
    assert_same_run(uninterrupted[0], result, uninterrupted)


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    short = dataclasses.replace(toy_run.CONFIG, steps=6)
    assert toy_run.run(tmp_path, short).step == 6
    loader = toy_run.Loader()
    assert toy_run.run(tmp_path, dataclasses.replace(short, steps=9), loader=loader).step == 9
    assert loader.read[0] == 7
    with pytest.raises(RunError, match=r"checkpoint at step 9, beyond loop.steps=6; raise loop.steps"):
        toy_run.run(tmp_path, short)


def test_signal_handlers_are_restored(tmp_path):
    former = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step"):
        toy_run.run(tmp_path, loader=toy_run.Loader(signals={2: signal.SIGINT}))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == former


def test_the_loader_state_saved_is_that_of_the_batches_used_however_far_the_feed_has_read(tmp_path):
    loader = toy_run.Loader()
    config = dataclasses.replace(toy_run.CONFIG, steps=4, prefetch=5, eval_every=None, best_metric=None)
    toy_run.run(tmp_path, config, loader=loader, evaluate=False)
    assert max(loader.read) > 4
    record = storage.read_json(tmp_path / "checkpoints" / "4" / "record" / "metadata")
    assert record["loaders"] == [{"number": 4}]


def test_another_architecture_in_the_same_directory_is_refused_by_name(tmp_path, uninterrupted):
    with pytest.raises(MismatchError, match=r"params/embed/table is float32\[16, 8\] there and float32\[16, 4\] here"):
        toy_run.run(uninterrupted[0], spec=toy_run.make_spec(dim=4))


def test_a_second_run_in_the_same_directory_is_told_to_wait(tmp_path):
    with storage.lock(tmp_path, ".train.lock"), pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
        toy_run.run(tmp_path)


def test_a_damaged_newest_checkpoint_costs_time_and_nothing_else(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        toy_run.run(tmp_path, loader=toy_run.Loader(signals={11: signal.SIGTERM}))
    newest = max((path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    (newest / "record" / "metadata").write_text("{")
    assert_same_run(tmp_path, toy_run.run(tmp_path), uninterrupted)
