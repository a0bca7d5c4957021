"""Geometry of the charts."""

import math
import xml.etree.ElementTree as ElementTree

import hypothesis
import hypothesis.strategies as st

from lmx.eval import chart
from lmx.eval.stage_drawing import stage_graph
from lmx.eval.summary import StageFigures


def numbers(path: str) -> list[float]:
    return [float(number) for number in path.replace("M", " ").replace("L", " ").split()]


@hypothesis.given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, spread: float) -> None:
    high = low + spread
    hypothesis.assume(spread > 1e-9 * abs(low))
    found = chart.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * spread <= tick <= high + 1e-6 * spread for tick in found)
    steps = {round((b - a) / spread, 6) for a, b in zip(found, found[1:], strict=False)}
    assert len(steps) == 1


def test_thinning_keeps_the_mean_and_drops_what_is_not_finite() -> None:
    points = [(float(x), math.nan if x == 3 else float(x % 7)) for x in range(1001)]
    thin = chart.thinned(points, limit=250)
    assert len(thin) <= 250
    finite = [y for _, y in points if math.isfinite(y)]
    assert abs(sum(y for _, y in thin) / len(thin) - sum(finite) / len(finite)) < 0.05
    assert thin[-1][0] == 1000


def test_a_falling_loss_is_drawn_from_upper_left_to_lower_right() -> None:
    svg = ElementTree.fromstring(
        chart.line_chart([chart.Series("loss", [(0, 3.0), (5, 2.0), (10, 1.0)])], x_label="step", y_label="loss")
    )
    (line,) = [path for path in svg.iter("path") if "line" in path.attrib["class"]]
    x1, y1, x2, y2, x3, y3 = numbers(line.attrib["d"])
    assert x1 < x2 < x3 and y1 < y2 < y3  # y grows downwards
    assert abs((x1 + x3) / 2 - x2) < 0.11 and abs((y1 + y3) / 2 - y2) < 0.11


def test_bar_lengths_are_proportional_to_their_values() -> None:
    svg = ElementTree.fromstring(chart.bar_chart([chart.Mark("a", 1.0, "1"), chart.Mark("b", 3.0, "3")], label="bits"))
    widths = [float(bar.attrib["width"]) for bar in svg.iter("rect")]
    assert abs(widths[1] / widths[0] - 3) < 0.01


def test_intervals_stand_around_their_value_on_a_scale_from_0_to_100_percent() -> None:
    mark = chart.Mark("sft", 0.5, "50%", low=0.25, high=1.0)
    svg = ElementTree.fromstring(chart.interval_chart([("all", [mark])], label="accuracy"))
    (interval,) = [line for line in svg.iter("line") if line.attrib["class"] == "range"]
    grid = [float(line.attrib["x1"]) for line in svg.iter("line") if line.attrib["class"] == "grid"]
    assert [float(interval.attrib[key]) for key in ("x1", "x2")] == [grid[1], grid[4]]
    assert [float(dot.attrib["cx"]) for dot in svg.iter("circle")] == [grid[2]]


def test_a_curve_without_a_finite_value_says_so() -> None:
    assert "No finite value" in chart.line_chart([chart.Series("loss", [(1, math.nan)])], x_label="step", y_label="loss")


def test_the_stage_graph_draws_every_stage_once_and_inputs_to_the_left() -> None:
    stages = [
        StageFigures(name="tokenizer", kind="TrainTokenizer"),
        StageFigures(name="teacher", kind="Pretrain", inputs=("tokenizer", "/data/elsewhere")),
        StageFigures(name="student", kind="Distill", inputs=("tokenizer", "teacher")),
        StageFigures(name="labels", kind="Pretrain", inputs=("tokenizer",)),
        StageFigures(name="evaluation", kind="Evaluate", inputs=("student", "labels", "teacher")),
    ]
    svg = ElementTree.fromstring(stage_graph(stages))
    left = {}
    for group in svg.iter("g"):
        title = group.find("title")
        if title is not None and title.text:
            box = group.find("rect")
            assert box is not None
            left[title.text.split(" ")[0]] = float(box.attrib["x"])
    assert left["tokenizer"] < left["teacher"] == left["labels"] < left["student"] < left["evaluation"]
    heads = [path for path in svg.iter("path") if path.attrib["class"] == "edge-head"]
    assert len(heads) == 5  # tokenizer-teacher, tokenizer-labels, teacher-student, student-evaluation, labels-evaluation


def test_an_empty_stage_graph_is_a_valid_drawing() -> None:
    assert ElementTree.fromstring(stage_graph([])).tag == "svg"
