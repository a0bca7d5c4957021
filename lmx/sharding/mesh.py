"""The device mesh: its shape as a config, and the mesh itself."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 on at most one of them takes the rest of the devices.

    Attributes:
      data: replicas of the parameters, each with its share of the batch.
      fsdp: shards of parameters and optimizer state, each with its share of the batch too.
      tensor: shards of heads, FFN and vocabulary.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{axis}={size} must be at least 1, or -1 for the rest of the devices")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"only one mesh axis can take the rest of the devices, but {sizes} has several -1")

    def sizes(self, num_devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) with -1 resolved for a number of devices."""
        given = (self.data, self.fsdp, self.tensor)
        fixed = math.prod(size for size in given if size != -1)
        if -1 in given and num_devices % fixed:
            raise ValueError(f"{num_devices} devices cannot be split by mesh axes {given}: not a multiple of {fixed}")
        data, fsdp, tensor = (num_devices // fixed if size == -1 else size for size in given)
        return data, fsdp, tensor


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes "data", "fsdp" and "tensor", neighbours on the fast links next to each other.

    Args:
      config: sizes of the axes.
      devices: devices to use, None = all. On a single process a smaller mesh takes the first of them.

    Raises:
      ValueError: the mesh has more devices than there are or, with several processes, does not use all.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    needed = math.prod(sizes)
    shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if needed > len(devices):
        raise ValueError(f"mesh {shape} needs {needed} devices, but there are {len(devices)}; make an axis smaller or use -1")
    if needed < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ValueError(f"mesh {shape} uses {needed} of {len(devices)} devices; with several processes it must use all, try -1")
    # Auto: the compiler propagates shardings from the parameters, the batch and the constraints.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])
