"""The stage graph as inline SVG: one box a stage, columns by depth, arrows from what a stage reads."""

import dataclasses
from collections.abc import Mapping, Sequence

from lmx.eval.markup import Markup, element
from lmx.eval.summary import StageFigures

_BOX_WIDTH, _BOX_HEIGHT, _LANE_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 132, 46, 10, 40, 16, 4
_NAME_LENGTH, _KIND_LENGTH = 17, 21  # characters that fit into a box


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A place in a column: a box, or the lane of an arrow that passes by."""

    name: str  # of the stage, or "from -> to" for a lane
    parents: tuple[str, ...]  # slots in the columns before; of a lane, the one in the column before
    box: bool


def stage_graph(stages: Sequence[StageFigures]) -> Markup:
    """Boxes and arrows; arrows that repeat a longer path between two stages are left out, and external inputs are not drawn."""
    columns = _columns(stages)
    heights = [sum((_BOX_HEIGHT if slot.box else _LANE_HEIGHT) + _GAP_Y for slot in column) - _GAP_Y for column in columns]
    places: dict[tuple[int, str], tuple[float, float]] = {}  # (column, slot) -> left end and middle
    for index, column in enumerate(columns):
        y = _MARGIN + (max(heights) - heights[index]) / 2
        for slot in column:
            height = _BOX_HEIGHT if slot.box else _LANE_HEIGHT
            places[index, slot.name] = (_MARGIN + index * (_BOX_WIDTH + _GAP_X), y + height / 2)
            y += height + _GAP_Y
    arrows = []
    for index, column in enumerate(columns):
        for slot in column:
            arrows += [_arrow(places[index - 1, parent], places[index, slot.name], head=slot.box) for parent in slot.parents]
            arrows += [] if slot.box else [_lane(places[index, slot.name])]
    position = {slot.name: index for index, column in enumerate(columns) for slot in column if slot.box}
    boxes = [_box(stage, places[position[stage.name], stage.name]) for stage in stages]
    width = len(columns) * (_BOX_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    height = max(heights, default=0) + 2 * _MARGIN
    size = {"viewBox": f"0 0 {width} {height:g}", "style": f"max-width:{width}px;min-width:{0.75 * width:g}px"}
    return element("svg", *arrows, *boxes, role="img", aria_label="stage graph", class_="chart graph", **size)


def _columns(stages: Sequence[StageFigures]) -> list[list[_Slot]]:
    """Slots of each column, ordered by where what they read stands in the column before."""
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = max((depth[name] + 1 for name in stage.inputs if name in depth), default=0)
    parents = {stage.name: tuple(dict.fromkeys(name for name in stage.inputs if name in depth)) for stage in stages}
    columns: list[list[_Slot]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for stage in stages:
        last = depth[stage.name]
        sources = []
        for parent in _direct(stage.name, parents):
            lane = f"{parent} -> {stage.name}"
            for index in range(depth[parent] + 1, last):
                columns[index].append(_Slot(lane, (parent if index == depth[parent] + 1 else lane,), box=False))
            sources.append(parent if depth[parent] + 1 == last else lane)
        columns[last].append(_Slot(stage.name, tuple(sources), box=True))
    for before, column in zip(columns, columns[1:], strict=False):
        row = {slot.name: index for index, slot in enumerate(before)}
        column.sort(key=lambda slot: sum(row[parent] for parent in slot.parents) / max(len(slot.parents), 1))
    return columns


def _direct(name: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Parents that are not also ancestors of another parent."""

    def ancestors(stage: str) -> set[str]:
        found = set(parents[stage])
        return found.union(*(ancestors(parent) for parent in found))

    further = set().union(*(ancestors(parent) for parent in parents[name]))
    return [parent for parent in parents[name] if parent not in further]


def _box(stage: StageFigures, place: tuple[float, float]) -> Markup:
    x, middle = place
    return element(
        "g",
        element("title", f"{stage.name} ({stage.kind})"),
        element("rect", class_="box", x=x, y=middle - _BOX_HEIGHT / 2, width=_BOX_WIDTH, height=_BOX_HEIGHT, rx=5),
        element("text", _cut(stage.name, _NAME_LENGTH), class_="label middle strong", x=x + _BOX_WIDTH / 2, y=middle - 3),
        element("text", _cut(stage.kind, _KIND_LENGTH), class_="tick middle", x=x + _BOX_WIDTH / 2, y=middle + 13),
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], *, head: bool) -> Markup:
    """From the right end of a slot to the left end of another in the next column."""
    x1, y1, x2, y2 = start[0] + _BOX_WIDTH, start[1], end[0] - (5 if head else 0), end[1]
    bend = 0.6 * _GAP_X
    curve = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    parts = [element("path", class_="edge", d=curve)]
    if head:
        parts.append(
            element("path", class_="edge-head", d=f"M{x2 - 3:.1f} {y2 - 4:.1f}L{x2 + 4:.1f} {y2:.1f}L{x2 - 3:.1f} {y2 + 4:.1f}Z")
        )
    return element("g", *parts)


def _lane(place: tuple[float, float]) -> Markup:
    return element("path", class_="edge", d=f"M{place[0]:.1f} {place[1]:.1f}H{place[0] + _BOX_WIDTH:.1f}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
