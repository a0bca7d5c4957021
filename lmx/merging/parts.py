"""The parameters of a model cut into tensors of one layer each, and the layers and tables that these belong to."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

_BLOCKS = "blocks/"
_EXPERTS = "/experts/"


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of one layer, or of one expert of a layer: a parameter without its leading axes.

    Attributes:
      leaf: path of the parameter, "blocks/0/attention/q/kernel".
      index: its place on the axes of stacked layers and experts; () = the parameter is not stacked.
      shape: of the part.
      group: what it belongs to: the layer's number, counted from 0 over the depth ("12"), or the first name of its path
        ("embed", "final_norm", "head").
      name: the same however the layers are stacked: "12/attention/q/kernel".
    """

    leaf: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    group: str
    name: str

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def cut(shapes: Mapping[str, Sequence[int]]) -> tuple[Part, ...]:
    """The parts of a model, those of a group next to each other, in the order of their names.

    Args:
      shapes: path of each parameter -> its shape. "blocks/<place in the pattern>/..." has a leading axis of repeats, so that
        repeat r of place i is the layer `r * places + i`; "/experts/" has a second one, of experts.

    Raises:
      ValueError: parameters of the layers differ in their number of repeats.
    """
    places = len({leaf.split("/")[1] for leaf in shapes if leaf.startswith(_BLOCKS)})
    repeats = {tuple(shape)[0]: leaf for leaf, shape in shapes.items() if leaf.startswith(_BLOCKS) and len(shape)}
    if len(repeats) > 1 or any(leaf.startswith(_BLOCKS) and not len(shape) for leaf, shape in shapes.items()):
        raise ValueError(
            f"{' and '.join(sorted(repeats.values())) or 'a scalar in blocks/'} disagree about the number of stacked layers; every "
            "parameter below blocks/ needs the same leading axis"
        )
    found = [part for leaf, shape in shapes.items() for part in _parts_of(leaf, tuple(shape), places)]
    return tuple(sorted(found, key=lambda part: (_order(part.group), part.name, part.index)))


def leading_axes(leaf: str) -> int:
    """How many leading axes of a parameter count layers and experts."""
    return 0 if not leaf.startswith(_BLOCKS) else 2 if _EXPERTS in leaf else 1


def _parts_of(leaf: str, shape: tuple[int, ...], places: int) -> Iterator[Part]:
    leading = leading_axes(leaf)
    if not leading:
        yield Part(leaf, (), shape, leaf.split("/")[0], leaf)
        return
    _, place, within = leaf.split("/", 2)
    for number in range(math.prod(shape[:leading])):
        index = (number,) if leading == 1 else divmod(number, shape[1])
        layer = index[0] * places + int(place)
        name = f"{layer}/{within}" + "".join(f"[{expert}]" for expert in index[1:])
        yield Part(leaf, tuple(index), shape[leading:], str(layer), name)


def _order(group: str) -> tuple[bool, int, str]:
    return (group.isdigit(), int(group) if group.isdigit() else 0, group)
