"""The table that maps logical axis names, of parameters and activations, to mesh axes."""

import dataclasses
import difflib

from jax.sharding import PartitionSpec

from lmx.sharding.mesh import AXES

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes.

    Attributes:
      table: pairs of a logical name and a mesh axis, a tuple of them (major first), or None = not sharded.
    """

    table: tuple[tuple[str, str | tuple[str, ...] | None], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.table]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"logical axes {repeated} have more than one rule")
        for name in names:
            unknown = [axis for axis in self.mesh_axes(name) if axis not in AXES]
            if unknown:
                raise ValueError(f"the rule of logical axis {name!r} names mesh axes {unknown}; a mesh has {AXES}")

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        """Mesh axes of a logical axis, () when it is not sharded (as None, an axis without a name, never is)."""
        if name is None:
            return ()
        table = dict(self.table)
        if name not in table:
            near = difflib.get_close_matches(name, table, n=3) or sorted(table)
            raise ValueError(f"logical axis {name!r} has no sharding rule; did you mean one of {near}?")
        axes = table[name]
        return () if axes is None else (axes,) if isinstance(axes, str) else axes

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """PartitionSpec of an array with these logical axes.

        Raises:
          ValueError: a name without a rule, or two axes of the array on the same mesh axis.
        """
        mesh_axes = [self.mesh_axes(name) for name in axes]
        used = [axis for group in mesh_axes for axis in group]
        for axis in used:
            if used.count(axis) > 1:
                rivals = [name for name, group in zip(axes, mesh_axes, strict=True) if axis in group]
                raise ValueError(f"an array with axes {axes} would use mesh axis {axis!r} for {rivals} at once")
        return PartitionSpec(*(group[0] if len(group) == 1 else group or None for group in mesh_axes))


# Batches are split over data and fsdp, parameters over fsdp (their model axis) and tensor (heads, FFN, vocabulary).
DEFAULT_RULES = Rules(
    (
        ("layers", None),
        ("experts", None),
        ("vocab", "tensor"),
        ("embed", "fsdp"),
        ("q_heads", "tensor"),
        ("kv_heads", "tensor"),
        ("head_dim", None),
        ("ffn", "tensor"),
        ("batch", ("data", "fsdp")),
        ("length", None),
        ("activation_embed", None),
        ("activation_heads", "tensor"),
        ("activation_kv_heads", "tensor"),
        ("activation_ffn", "tensor"),
        ("activation_vocab", "tensor"),
    )
)
