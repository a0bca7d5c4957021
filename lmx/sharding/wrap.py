"""Kernels under `shard_map`, by logical axes. The compiler cannot look into a kernel, so it is told what a shard computes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from lmx.core.types import Array, PyTree
from lmx.sharding import place
from lmx.sharding.rules import LogicalAxes, Rules


def shard_by_axes(
    fn: Callable[..., Any],
    mesh: Mesh,
    rules: Rules,
    inputs: tuple[PyTree, ...],
    output_ranks: int | tuple[int, ...] | None = None,
) -> Callable[..., Any]:
    """`fn` on every device's shard of its arguments.

    Dimensions that don't divide over their mesh axes are passed whole. Inside `fn`, collectives may name the mesh axes.

    Args:
      fn: function of arrays, or pytrees of them, to one array of the first argument's shape and axes, or to several with its
        leading ones.
      mesh: device mesh.
      rules: logical axis -> mesh axes.
      inputs: for each positional argument its logical axes, or a pytree of them.
      output_ranks: how many of the first argument's axes each output has; None = one output with all.

    Returns:
      A differentiable function of the same arguments, whole.
    """

    def spec(axes: LogicalAxes, x: Array) -> PartitionSpec:
        return place.fitting_spec(axes, x.shape, mesh, rules)

    def wrapped(*args: Any) -> Any:
        in_specs = jax.tree.map(spec, inputs, args, is_leaf=_is_axes)
        out_specs = jax.tree.map(lambda rank: PartitionSpec(*in_specs[0][:rank]), output_ranks or args[0].ndim)
        # check_vma=False: kernels with custom gradients start their loops from plain zeros, which the check would reject.
        return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)

    return wrapped


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)
