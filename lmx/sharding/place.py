"""Where arrays live: shardings of parameters and batches, and constraints on activations."""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.core.types import Array, PyTree
from lmx.sharding.rules import LogicalAxes, Rules


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def extent(mesh: Mesh, mesh_axes: tuple[str, ...]) -> int:
    """Number of shards that a dimension on these mesh axes has."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes)


def shardings(axes_tree: PyTree, abstract_tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """A NamedSharding for every parameter.

    KV heads that don't divide over their mesh axes are replicated, as in every grouped-query model on many devices; any other
    dimension that doesn't is an error, since a silent copy on every device is how memory runs out.

    Args:
      axes_tree: tuples of logical axis names, in the structure of the parameters.
      abstract_tree: arrays or jax.ShapeDtypeStruct, the parameters.
      mesh: device mesh.
      rules: logical axis -> mesh axes.

    Raises:
      ValueError: a dimension doesn't divide, or axes and shape differ in length; the parameter is named.
    """

    def leaf(path: tuple, axes: LogicalAxes, array: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if len(axes) != len(array.shape):
            raise ValueError(f"parameter {name} of shape {array.shape} has {len(axes)} logical axes, {axes}")
        kept = []
        for dim, (axis, size) in enumerate(zip(axes, array.shape, strict=True)):
            mesh_axes = rules.mesh_axes(axis)
            divides = size % extent(mesh, mesh_axes) == 0
            if not divides and axis != "kv_heads":
                raise ValueError(
                    f"dimension {dim} ({axis}, size {size}) of parameter {name} cannot be split over mesh axes {mesh_axes} of size "
                    f"{extent(mesh, mesh_axes)}; choose a mesh that divides it, or a rule that maps {axis!r} to None"
                )
            kept.append(axis if divides else None)
        return NamedSharding(mesh, rules.spec(tuple(kept)))

    return jax.tree_util.tree_map_with_path(leaf, axes_tree, abstract_tree, is_leaf=lambda x: isinstance(x, tuple))


def batch_shardings(batch_spec: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """A NamedSharding for every array of a batch: the leading axis split by the rule of "batch", the others whole."""
    sharding = NamedSharding(mesh, rules.spec(("batch",)))
    return jax.tree.map(lambda _: sharding, batch_spec)


def fitting_spec(axes: LogicalAxes, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """As `rules.spec`, with the dimensions that don't divide left whole."""
    fitting = (axis if size % extent(mesh, rules.mesh_axes(axis)) == 0 else None for axis, size in zip(axes, shape, strict=True))
    return rules.spec(tuple(fitting))


def constrain(mesh: Mesh, rules: Rules) -> Callable[[Array, LogicalAxes], Array]:
    """A function that pins an activation's sharding by its logical axes; the identity on a single device.

    Dimensions that don't divide (a batch of one row, few KV heads) are left whole.
    """
    if mesh.size == 1:
        return lambda x, axes: x
    return lambda x, axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fitting_spec(axes, x.shape, mesh, rules)))
