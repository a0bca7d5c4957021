import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmx.sharding import DEFAULT_RULES, MeshConfig, build_mesh, place


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_every_parameter_gets_the_sharding_of_its_axes():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = {"embed": ("vocab", "embed"), "norm": ("embed",)}
    shardings = place.shardings(axes, {"embed": shape(8, 4), "norm": shape(4)}, mesh, DEFAULT_RULES)
    assert shardings["embed"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["norm"].spec == PartitionSpec("fsdp")


def test_kv_heads_that_do_not_divide_are_replicated():
    mesh = build_mesh(MeshConfig(tensor=4))
    axes = {"k": ("embed", "kv_heads", "head_dim")}
    split, whole = (place.shardings(axes, {"k": shape(4, heads, 2)}, mesh, DEFAULT_RULES)["k"].spec for heads in (8, 2))
    assert split == PartitionSpec("fsdp", "tensor", None)
    assert whole == PartitionSpec("fsdp", None, None)


def test_any_other_dimension_that_does_not_divide_is_named():
    mesh = build_mesh(MeshConfig(tensor=4))
    with pytest.raises(ValueError, match=r"dimension 1 \(ffn, size 6\) of parameter block/up cannot be split .* size 4"):
        place.shardings({"block": {"up": ("embed", "ffn")}}, {"block": {"up": shape(4, 6)}}, mesh, DEFAULT_RULES)


def test_axes_that_do_not_fit_the_shape_are_named():
    with pytest.raises(ValueError, match=r"parameter norm of shape \(4, 2\) has 1 logical axes"):
        place.shardings({"norm": ("embed",)}, {"norm": shape(4, 2)}, build_mesh(MeshConfig()), DEFAULT_RULES)


def test_batches_are_split_by_rows():
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    rows = jax.device_put(np.arange(16).reshape(8, 2), place.batch_shardings(shape(8, 2), mesh, DEFAULT_RULES))
    assert [shard.data.shape for shard in rows.addressable_shards] == [(1, 2)] * 8


def test_constraints_leave_whole_what_does_not_divide_and_change_no_value():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    pin = jax.jit(lambda x: place.constrain(mesh, DEFAULT_RULES)(x, ("batch", "activation_heads")))
    x = np.arange(12.0).reshape(4, 3)
    pinned = pin(x)
    assert [shard.data.shape for shard in pinned.addressable_shards] == [(1, 3)] * 8
    np.testing.assert_array_equal(pinned, x)


def test_on_one_device_a_constraint_is_the_identity():
    x = jnp.ones((2, 2))
    assert place.constrain(build_mesh(MeshConfig()), DEFAULT_RULES)(x, ("batch", None)) is x
