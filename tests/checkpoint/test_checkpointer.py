"""Checkpoints are complete or absent, pruned by rule, checked when read, and survive a full disk and a kill."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.checkpoint.checkpointer import Checkpointer, Retention
from lmx.checkpoint.record import DamagedError, MismatchError
from lmx.core.errors import DiskFullError

OPTIMIZER = optax.adamw(1e-3)
LOADER, EXTRAS = {"position": 3}, {"sums": {"loss": [0.1, 2.0]}}

SAVE_FOR_EVER = """
import sys, jax.numpy as jnp
from lmx.checkpoint.checkpointer import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for step in range(1, 10_000):
    checkpointer.save(step, {"a": jnp.full((256, 1024), step), "b": jnp.full((4,), step)}, loader={"at": step}, extras={})
    print(step, flush=True)
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array


def make_state(value=1.0, width=8):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    values = np.random.default_rng(int(value)).normal(size=(512, width)).astype(np.float32)
    params = {"block": {"w": jax.device_put(values, NamedSharding(mesh, PartitionSpec("fsdp")))}, "half": jnp.ones(3, jnp.bfloat16)}
    return State(jnp.int32(value), params, OPTIMIZER.init(params), jax.random.key_data(jax.random.key(int(value))))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save_all(directory, steps, **kwargs):
    with Checkpointer(directory, **kwargs) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), loader={"position": step}, extras=EXTRAS)
        checkpointer.wait()
        return checkpointer.steps()


def data_files(directory):
    """Files that hold array values, the largest first."""
    files = [path for path in (directory / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


def assert_equal_trees(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert a.sharding == b.sharding


def test_what_was_saved_comes_back_with_its_shardings_position_and_extras(tmp_path):
    state = make_state(2)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore_latest(abstract(state)) is None
        checkpointer.save(7, state, loader=LOADER, extras=EXTRAS)
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore_latest(abstract(state))
    assert (restored.step, restored.loader, restored.extras) == (7, LOADER, EXTRAS)
    assert isinstance(restored.state, State)
    assert_equal_trees(restored.state, state)


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state, expected = make_state(3), make_state(3)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, loader={}, extras={})
        for _ in range(3):
            state = overwrite(state)
        checkpointer.wait()
        assert_equal_trees(checkpointer.restore(1, abstract(expected)).state, expected)


def test_the_newest_the_periodic_and_the_best_checkpoint_stay(tmp_path):
    with Checkpointer(tmp_path, Retention(last=2, every=4)) as checkpointer:
        for step in range(1, 8):
            checkpointer.save(step, {"a": jnp.ones(2)}, loader={}, extras={}, best_step=min(step, 3))
        checkpointer.wait()
        assert checkpointer.steps() == [3, 4, 6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "6", "7"]


def test_a_checkpoint_of_another_architecture_is_refused_by_the_first_difference(tmp_path):
    save_all(tmp_path, [5])
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(MismatchError, match=r"params/block/w is float32\[512, 8\] there and float32\[512, 4\] here"):
            checkpointer.restore_latest(abstract(make_state(width=4)))
        grown = dataclasses.replace(make_state(), params={**make_state().params, "bias": jnp.zeros(2)})
        with pytest.raises(MismatchError, match=r"has no params/bias, which here is float32\[2\]"):
            checkpointer.restore_latest(abstract(grown))
        shrunk = dataclasses.replace(make_state(), params={"half": jnp.ones(3, jnp.bfloat16)})
        with pytest.raises(MismatchError, match=r"its params/block/w, float32\[512, 8\], is unknown here"):
            checkpointer.restore_latest(abstract(shrunk))
        assert checkpointer.steps() == [5]


@pytest.mark.parametrize("damage", ["cut", "flipped", "record cut", "record gone"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_takes_over(tmp_path, caplog, damage):
    save_all(tmp_path, [5, 10])
    target = tmp_path / "10" / "record" / "metadata" if "record" in damage else data_files(tmp_path / "10")[0]
    data = bytearray(target.read_bytes())
    if damage == "flipped":  # an array chunk stays readable: only the digest can tell
        data[len(data) // 2] ^= 0x40
        target.write_bytes(data)
    elif damage == "record gone":
        target.unlink()
    else:
        target.write_bytes(data[: len(data) // 2])
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(DamagedError, match=r"checkpoint .*/10 .*an earlier checkpoint is at step 5 \(remove or rename .*/10"):
            checkpointer.restore(10, abstract(make_state()))
        restored = checkpointer.restore_latest(abstract(make_state()))
        assert restored.step == 5
        assert_equal_trees(restored.state, make_state(5))
        assert "going on from the older checkpoint at step 5" in caplog.text
        checkpointer.save(10, make_state(10), loader={}, extras={})
        checkpointer.wait()
        assert_equal_trees(checkpointer.restore(10, abstract(make_state())).state, make_state(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "10.damaged", "5"]


def test_when_no_checkpoint_is_intact_nothing_is_touched_and_the_sentence_says_so(tmp_path):
    save_all(tmp_path, [5])
    target = data_files(tmp_path / "5")[0]
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(DamagedError, match="none of the 1 checkpoints in .* is intact"):
        checkpointer.restore_latest(abstract(make_state()))
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_a_full_disk_gives_a_sentence_and_leaves_earlier_checkpoints(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        random = np.random.default_rng(0)  # incompressible
        tree = lambda: {"a": jnp.asarray(random.normal(size=(512, 512)).astype(np.float32))}  # noqa: E731
        checkpointer = Checkpointer(disk / "c")
        with pytest.raises(
            DiskFullError, match=r"checkpoint of step 3 could not be written .*untouched \(steps: 1, 2\); free some"
        ):
            for step in range(1, 5):
                checkpointer.save(step, tree(), loader={}, extras={})
                while checkpointer._manager.is_saving_in_progress():
                    time.sleep(0.01)
                checkpointer.check()
        assert checkpointer.steps() == [1, 2]
        assert checkpointer.restore(1, abstract(tree())).step == 1
        assert [path.name for path in (disk / "c").iterdir() if "tmp" in path.name] == []
        checkpointer.__exit__(None)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_reported_by_orbax_later_is_raised_by_the_next_wait(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.ones(2)}, loader={}, extras={})
        checkpointer.wait()

        finish = checkpointer._manager.wait_until_finished

        def fail():
            finish()
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes to file 11: No space left on device [os_error_code='28']")

        checkpointer.save(2, {"a": jnp.ones(2)}, loader={}, extras={})
        with monkeypatch.context() as patch:
            patch.setattr(checkpointer._manager, "wait_until_finished", fail)
            with pytest.raises(DiskFullError, match=r"step 2 could not be written to .* \(steps: 1\)"):
                checkpointer.wait()


def test_a_process_killed_while_saving_leaves_only_complete_checkpoints(tmp_path):
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    last = 0
    for delay in (0.0, 0.013, 0.031):
        for _ in range(4):
            last = int(process.stdout.readline())
        time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    tree = {"a": jax.ShapeDtypeStruct((256, 1024), jnp.int32), "b": jax.ShapeDtypeStruct((4,), jnp.int32)}
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), tree)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps()[-1] >= last - 1
        for step in checkpointer.steps():
            restored = checkpointer.restore(step, target)
            assert restored.loader == {"at": step}
            assert (np.asarray(restored.state["a"]) == step).all()
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == checkpointer.steps()


def test_pruned_checkpoints_are_renamed_before_their_files_go(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_empty_removed", lambda self: None)  # killed before it came to that
        with Checkpointer(tmp_path, Retention(last=1)) as checkpointer:
            for step in (1, 2, 3):
                checkpointer.save(step, {"a": jnp.full(2, step)}, loader={}, extras={})
    assert sorted(path.name for path in (tmp_path / "removed").iterdir()) == ["1", "2"]
    with Checkpointer(tmp_path, Retention(last=1)) as checkpointer:
        assert [path.name for path in tmp_path.iterdir()] == ["3"]
        checkpointer.save(4, {"a": jnp.full(2, 4)}, loader={}, extras={})
        checkpointer.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["4"]


def test_retention_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="retention.last=0 must be at least 1"):
        Retention(last=0)
