import jax
import pytest

from lmx.sharding import MeshConfig, build_mesh


def test_minus_one_takes_the_rest_of_the_devices():
    assert MeshConfig(data=2, fsdp=-1, tensor=2).sizes(8) == (2, 2, 2)
    assert dict(build_mesh(MeshConfig(fsdp=-1)).shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_the_plain_mesh_is_one_device():
    assert build_mesh(MeshConfig()).devices.tolist() == [[[jax.devices()[0]]]]


def test_a_mesh_takes_the_devices_it_is_given():
    mesh = build_mesh(MeshConfig(data=2), jax.devices()[4:])
    assert set(mesh.devices.flat) == set(jax.devices()[4:6])


def test_too_few_devices_are_reported_with_both_numbers():
    with pytest.raises(ValueError, match=r"data 4 x fsdp 4 x tensor 1 needs 16 devices, but there are 8"):
        build_mesh(MeshConfig(data=4, fsdp=4))


def test_a_rest_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 devices cannot be split"):
        build_mesh(MeshConfig(data=3, fsdp=-1))


def test_two_rests_are_refused():
    with pytest.raises(ValueError, match="several -1"):
        MeshConfig(data=-1, fsdp=-1)


@pytest.mark.parametrize("size", [0, -2])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"mesh.tensor={size}"):
        MeshConfig(tensor=size)
