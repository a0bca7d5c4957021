"""Shares of a mixture."""

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.data.mixture import ExactShares


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
