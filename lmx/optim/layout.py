"""What an optimizer may know of a model: its width, and which parameters hold all layers stacked."""

import dataclasses

import jax

from lmx.core.types import PyTree

LAYERS = "layers"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a model, as far as optimizers care.

    Attributes:
      axes: the structure of the parameters, each leaf a tuple of logical axis names; "layers" in front marks a parameter that
        holds the same matrix of every layer, stacked.
      width: D, the model dimension.
    """

    axes: PyTree
    width: int

    def stacked(self) -> dict[str, bool]:
        """Path of each parameter -> whether its leading axis counts layers."""
        leaves = jax.tree_util.tree_leaves_with_path(self.axes, is_leaf=lambda axes: isinstance(axes, tuple))
        return {path_name(path): axes[:1] == (LAYERS,) for path, axes in leaves}


def path_name(path: tuple) -> str:
    """The path of a leaf as text, "blocks/0/attention/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
