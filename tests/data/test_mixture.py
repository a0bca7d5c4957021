"""Shares of a mixture."""

from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.data.mixture import ExactShares, MixPoint, MixSchedule


@hypothesis.given(st.lists(st.floats(0.01, 10).map(lambda weight: round(weight, 3)), min_size=1, max_size=5))
def test_shares_are_within_one_percent_and_each_component_is_read_in_order(weights: list[float]) -> None:
    shares = ExactShares(weights)
    rows = [shares[index] for index in range(1000)]
    for component, weight in enumerate(weights):
        own = [row for of, row in rows if of == component]
        assert own == list(range(len(own)))
        assert abs(len(own) / 1000 - weight / sum(weights)) < 0.01


def test_seven_and_three_tenths_are_exact_in_every_ten() -> None:
    shares = ExactShares([0.7, 0.3])
    for start in range(0, 1000, 10):
        assert sum(shares[start + index][0] == 0 for index in range(10)) == 7


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        ExactShares(weights)


@hypothesis.given(st.lists(st.floats(0.01, 10).map(lambda weight: round(weight, 3)), min_size=1, max_size=5), st.integers(0, 500))
def test_counts_are_those_of_the_rows(weights: list[float], rows: int) -> None:
    shares = ExactShares(weights)
    assert shares.counts(rows) == [sum(shares[index][0] == of for index in range(rows)) for of in range(len(weights))]


def schedule(*points: tuple[int, dict[str, float]], linear: bool = False) -> MixSchedule:
    return MixSchedule(points=tuple(MixPoint(from_tokens=mark, weights=weights) for mark, weights in points), linear=linear)


NAMES = ("web", "code", "books")
CHANGING = schedule((0, {"web": 0.9, "code": 0.1}), (4_000, {"web": 0.5, "code": 0.3, "books": 0.2}), (9_990, {"books": 1.0}))


def test_shares_are_exact_in_every_stage_of_a_schedule_and_no_block_is_lost_or_repeated() -> None:
    mixture, block = CHANGING.stretches(NAMES, 10), 10
    drawn = [mixture[index] for index in range(1500)]
    for component in range(3):
        own = [row for of, row in drawn if of == component]
        assert own == list(range(len(own)))
    for start, end, weights in ((0, 400, (0.9, 0.1, 0)), (400, 999, (0.5, 0.3, 0.2)), (999, 1500, (0, 0, 1))):
        for component, weight in enumerate(weights):
            share = sum(of == component for of, _ in drawn[start:end]) / (end - start)
            assert abs(share - weight) < 0.01 and (weight > 0 or share == 0)
    assert CHANGING.points[1].from_tokens == 400 * block


def test_a_linear_schedule_moves_straight_from_point_to_point() -> None:
    line = schedule((0, {"web": 2, "code": 2}), (64_000, {"web": 0.0, "books": 1}), linear=True).stretches(NAMES, 10)
    drawn = [line[index][0] for index in range(7000)]
    assert [drawn[:6400].count(component) / 6400 for component in range(3)] == pytest.approx([0.25, 0.25, 0.5], abs=0.002)
    for middle in (800, 3200, 5600):
        books = drawn[middle - 200 : middle + 200].count(2) / 400
        assert books == pytest.approx(middle / 6400, abs=0.02)
    assert set(drawn[6400:]) == {2}


def test_marks_closer_than_a_block_are_passed_over() -> None:
    close = schedule((0, {"web": 1}), (11, {"code": 1}), (12, {"books": 1})).stretches(NAMES, 10)
    assert [close[index] for index in range(4)] == [(0, 0), (0, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule((0, {"web": -1, "code": 2})), r"must be 0 or positive, got \{'web': -1\} from token 0 on"),
        (lambda: schedule((0, {"web": 0, "code": 0})), "from token 0 on has no weight above 0"),
        (lambda: schedule((0, {})), "has no weight above 0"),
        (lambda: schedule((5, {"web": 1})), r"starts with a point from_tokens=0, but its marks are \[5\]"),
        (lambda: schedule((0, {"web": 1}), (9, {"web": 1}), (9, {"web": 1})), "goes backwards: the mark 9 follows 9"),
        (lambda: schedule((0, {"wbe": 1})).check(NAMES), "names 'wbe'; the components are 'web', 'code', 'books'"),
        (lambda: CHANGING.check(("web", "web")), "needs components with distinct names"),
    ],
)
def test_impossible_schedules_are_refused_in_a_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
