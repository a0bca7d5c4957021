"""Parameter directories written and read in parts: the same directory as `save_params` makes, for every reader."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.checkpoint import streaming
from lmx.checkpoint.parameters import describe_params, restore_params, save_params
from lmx.checkpoint.record import DamagedError, part_digest, with_digests
from lmx.checkpoint.streaming import ParameterReader, ParameterWriter, block_rows
from lmx.core.errors import DiskFullError

SHAPES = {
    "blocks/0/experts/up": ((2, 3, 4, 5), "bfloat16", 2),
    "blocks/0/norm": ((2, 5), "float16", 1),
    "embed/table": ((40, 5), "float32", 0),
}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {leaf: generator.standard_normal(shape).astype(jnp.dtype(dtype)) for leaf, (shape, dtype, _) in SHAPES.items()}


def nested(arrays):
    experts, norm, table = (jnp.asarray(arrays[leaf]) for leaf in SHAPES)
    return {"blocks": {"0": {"experts": {"up": experts}, "norm": norm}}, "embed": {"table": table}}


def parts(leaf):
    """(indices, first row, end) of the parts of a parameter, in an order that is not the array's."""
    shape, _, leading = SHAPES[leaf]
    step = block_rows(shape[leading:])
    for index in reversed(list(np.ndindex(*shape[:leading]))):
        for start in reversed(range(0, shape[leading], step)):
            yield index, start, min(shape[leading], start + step)


@pytest.fixture
def written(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_ELEMENTS", 36)
    writer = ParameterWriter(tmp_path / "params", SHAPES)
    for leaf, array in arrays.items():
        for index, start, stop in parts(leaf):
            writer.write(leaf, index, start, array[index][start:stop])
    writer.finish()
    return tmp_path / "params"


def test_orbax_restores_what_was_written_in_parts_on_one_device_or_many(written, arrays):
    expected = nested(arrays)
    jax.tree.map(np.testing.assert_array_equal, restore_params(written), expected)
    assert describe_params(written) == jax.eval_shape(lambda: expected)
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), expected)
    shardings["embed"]["table"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    shardings["blocks"]["0"]["experts"]["up"] = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    sharded = restore_params(written, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, sharded, expected)
    assert sharded["embed"]["table"].sharding == shardings["embed"]["table"]


def test_a_chunk_holds_one_layer_and_one_expert(written):
    def chunks(name):
        return json.loads((written / "arrays" / name / ".zarray").read_text())["chunks"]

    assert chunks("blocks.0.experts.up") == [1, 1, 4, 5] and chunks("blocks.0.norm") == [1, 5]
    assert chunks("embed.table") == [7, 5]  # 40 rows in the 6 blocks that 36 elements allow, spread evenly


def test_digests_of_parts_add_up_to_the_digest_of_the_whole(arrays):
    whole = with_digests(nested(arrays))
    for leaf, array in arrays.items():
        rest = (0,) * (array.ndim - 1)
        total = sum(part_digest(array[i : i + 1], (i, *rest)) for i in range(len(array))) % 2**32
        assert total == part_digest(array, (0, *rest)) == whole[leaf]["digest"]
        changed = array.copy()
        changed.reshape(-1).view(np.uint8)[3] ^= 1
        assert part_digest(changed, (0, *rest)) != whole[leaf]["digest"]


@pytest.mark.parametrize("writer", ["parts", "orbax", "orbax in chunks"])
def test_parts_are_read_back_however_they_were_written(tmp_path, arrays, written, monkeypatch, writer):
    if writer != "parts":
        monkeypatch.setattr("lmx.checkpoint.parameters._CHUNK_BYTES", 64 if writer == "orbax in chunks" else 1 << 20)
        written = tmp_path / "other"
        save_params(written, nested(arrays))
    reader = ParameterReader(written)
    assert {leaf: form.shape for leaf, form in reader.shapes.items()} == {leaf: shape for leaf, (shape, _, _) in SHAPES.items()}
    for leaf, array in arrays.items():
        for index, start, stop in parts(leaf):
            np.testing.assert_array_equal(reader.read(leaf, index, start, stop), array[index][start:stop])


def test_large_parameters_are_saved_with_layers_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("lmx.checkpoint.parameters._CHUNK_BYTES", 256)
    params = {
        "blocks": {"0": {"w": jnp.arange(3 * 8 * 16.0).reshape(3, 8, 16)}},
        "embed": {"table": jnp.arange(512.0).reshape(64, 8)},
    }
    save_params(tmp_path / "params", params)
    reader = ParameterReader(tmp_path / "params")
    shapes = {leaf: reader._open(leaf).chunk_layout.read_chunk.shape for leaf in reader.shapes}
    assert shapes["blocks/0/w"][0] == 1 and all(math.prod(shape) * 4 <= 256 for shape in shapes.values())
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / "params"), params)


def test_a_changed_value_is_noticed_when_the_parameter_has_been_read(written):
    record = written / "record" / "metadata"
    value = json.loads(record.read_text())
    value["arrays"]["embed/table"]["digest"] ^= 1
    record.write_text(json.dumps(value))
    reader = ParameterReader(written)
    reader.read("embed/table", (), 0, 20)
    with pytest.raises(DamagedError, match="the values of embed/table are not those that were saved"):
        reader.read("embed/table", (), 20, 40)


def test_a_missing_chunk_is_damage(written):
    (written / "arrays" / "blocks.0.norm" / "1.0").unlink()
    with pytest.raises(DamagedError, match="cannot be read, it was cut short or changed"):
        ParameterReader(written).read("blocks/0/norm", (1,), 0, 5)
    with pytest.raises(DamagedError):
        restore_params(written)


def test_an_incomplete_directory_is_refused(tmp_path, arrays):
    writer = ParameterWriter(tmp_path / "params", SHAPES)
    writer.write("embed/table", (), 0, arrays["embed/table"])
    with pytest.raises(ValueError, match=r"0 of 120 elements of blocks/0/experts/up were written"):
        writer.finish()
    writer.abort()
    with pytest.raises(DamagedError):
        restore_params(tmp_path / "params")
    with pytest.raises(ValueError, match="a block of embed/table is float16, but the parameter is float32"):
        writer.write("embed/table", (), 0, np.zeros((40, 5), np.float16))
    with pytest.raises(FileExistsError):
        ParameterWriter(tmp_path / "params", SHAPES)


def test_a_full_disk_is_one_sentence(tmp_path, arrays, monkeypatch):
    writer = ParameterWriter(tmp_path / "params", SHAPES)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr("tensorstore.open", full)
    with pytest.raises(DiskFullError, match="the disk is full: the parameters could not be written to .*params; free some space"):
        writer.write("embed/table", (), 0, arrays["embed/table"])
