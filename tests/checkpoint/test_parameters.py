"""Parameter directories of artefacts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.checkpoint.parameters import describe_params, restore_params, save_params
from lmx.checkpoint.record import DamagedError, MismatchError
from lmx.core.errors import DiskFullError


def params(scale=1.0):
    return {"embed": {"table": scale * jnp.arange(32.0).reshape(8, 4)}, "norm": {"gain": jnp.full((4,), scale, jnp.bfloat16)}}


def test_parameters_come_back_on_one_device_or_on_the_shardings_given(tmp_path):
    save_params(tmp_path / "params", params())
    plain = restore_params(tmp_path / "params")
    jax.tree.map(np.testing.assert_array_equal, plain, params())
    assert plain["embed"]["table"].sharding.device_set == {jax.devices()[0]}
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    shardings = {
        "embed": {"table": NamedSharding(mesh, PartitionSpec("fsdp"))},
        "norm": {"gain": NamedSharding(mesh, PartitionSpec())},
    }
    sharded = restore_params(tmp_path / "params", shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, sharded, params())
    assert jax.tree.map(lambda x: x.sharding, sharded) == shardings


def test_the_shapes_are_known_without_reading_arrays(tmp_path):
    save_params(tmp_path / "params", params())
    for path in (tmp_path / "params" / "arrays").rglob("*"):
        if path.is_file():
            path.unlink()
    assert describe_params(tmp_path / "params") == jax.eval_shape(params)
    wanted = jax.eval_shape(lambda: {**params(), "embed": {"table": jnp.zeros((8, 5))}})
    with pytest.raises(MismatchError, match=r"embed/table is float32\[8, 4\] there and float32\[8, 5\] here"):
        restore_params(tmp_path / "params", wanted)
    with pytest.raises(DamagedError, match="cannot be read, it was cut short or changed"):
        restore_params(tmp_path / "params")


def test_saving_again_replaces_the_parameters(tmp_path):
    save_params(tmp_path / "params", params())
    save_params(tmp_path / "params", params(2.0))
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / "params"), params(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["params"]


def test_absent_and_foreign_directories_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no parameters at .*params; did the stage"):
        restore_params(tmp_path / "params")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "model.bin").write_bytes(b"x")
    with pytest.raises(DamagedError, match="the parameter record of .* cannot be read"):
        restore_params(tmp_path / "params")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    with pytest.raises(DiskFullError, match="the disk is full: the parameters could not be written to .*params"):
        save_params(tmp_path / "params", params())
