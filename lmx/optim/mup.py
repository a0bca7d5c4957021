"""muP-simple: updates of hidden matrices scaled by base width over width, so that one learning rate serves every width."""

import dataclasses
import re

import jax
import optax

from lmx.core.types import Params, PyTree
from lmx.optim.layout import Layout, path_name

# The matrices inside the layers of lmx's decoders, of experts too. A router's outputs don't grow with the width, so it is none.
HIDDEN = r"(^|/)((q|k|v|o|gate|up|down)/kernel|experts/(gate|up|down))$"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuPSimple:
    """The factor s = min(base_width / D, 1) on the updates of hidden matrices, 1 on all else; nothing changes at initialisation.

    Weight decay is not scaled. The factor uses the model dimension D for every matrix, also where the fan-in is another.

    Attributes:
      base_width: D of the model on which the learning rate was found.
      hidden: regular expression, searched in the paths of the parameters.

    Reference: Wortsman et al. (2023), arXiv:2309.14322, section 3.2.4; base width and matrices as in apple/axlearn.
    """

    base_width: int = 768
    hidden: str = HIDDEN

    def __post_init__(self) -> None:
        if self.base_width < 1:
            raise ValueError(f"mup.base_width={self.base_width} must be at least 1: it is the width the learning rate was found at")

    def factor(self, path: str, width: int) -> float:
        """s of the parameter at a path, for a model of this width."""
        return min(self.base_width / width, 1.0) if re.search(self.hidden, path) else 1.0

    def scale(self, layout: Layout) -> optax.GradientTransformation:
        """Multiplies every update by its factor."""

        def update(updates: PyTree, params: Params | None) -> PyTree:
            del params
            return jax.tree_util.tree_map_with_path(lambda path, u: u * self.factor(path_name(path), layout.width), updates)

        return optax.stateless(update)


def require_layout(layout: Layout | None, who: str) -> Layout:
    """The layout, or a ValueError that says who needs one."""
    if layout is None:
        raise ValueError(f"{who} needs the model's layout; call build(steps, Layout(model.axes, model.config.model_dim))")
    return layout
