"""Intervals against published values, closed forms and simulation."""

import math
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from lmx.eval import statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17:857-872, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    estimate = statistics.wilson_interval(successes, trials)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)
    assert estimate.value == successes / trials
    assert estimate.count == trials


@hypothesis.given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_interval_contains_its_estimate_and_is_never_empty(trials: int, share: float) -> None:
    estimate = statistics.wilson_interval(share * trials, trials)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high > estimate.low


def test_difference_of_proportions_has_newcombes_published_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17:873-890, Table II, example (a), method 10: 56/70 - 48/80.
    difference = statistics.difference_of_proportions(statistics.wilson_interval(56, 70), statistics.wilson_interval(48, 80))
    assert round(difference.value, 4) == 0.2
    assert (round(difference.low, 4), round(difference.high, 4)) == (0.0524, 0.3339)


def test_win_rate_interval_is_bonett_and_prices_for_paired_proportions() -> None:
    wins, ties, losses = 12, 30, 4
    pairs = wins + ties + losses
    p12, p21 = 13 / (pairs + 2), 5 / (pairs + 2)
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (pairs + 2))
    estimate = statistics.win_rate_interval(wins, ties, losses)
    assert estimate.value == pytest.approx(0.5 + 8 / (2 * pairs))
    assert 2 * estimate.low - 1 == pytest.approx(p12 - p21 - half, abs=1e-6)
    assert 2 * estimate.high - 1 == pytest.approx(p12 - p21 + half, abs=1e-6)


def test_win_rate_of_nothing_but_ties_is_one_half_with_an_interval_around_it() -> None:
    estimate = statistics.win_rate_interval(0, 50, 0)
    assert estimate.low < estimate.value == 0.5 < estimate.high


def test_win_rate_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    generator = random.Random(0)
    win, loss, pairs, trials = 0.25, 0.1, 60, 2000
    covered = 0
    for _ in range(trials):
        draws = [generator.random() for _ in range(pairs)]
        wins, losses = sum(d < win for d in draws), sum(d > 1 - loss for d in draws)
        estimate = statistics.win_rate_interval(wins, pairs - wins - losses, losses)
        covered += estimate.low <= 0.5 + (win - loss) / 2 <= estimate.high
    assert 0.93 < covered / trials < 0.98


def test_ratio_interval_of_equal_ratios_has_no_width_and_one_unit_no_bound() -> None:
    assert statistics.ratio_interval([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == statistics.Estimate(2.0, 2.0, 2.0, 3)
    single = statistics.ratio_interval([3.0], [2.0])
    assert (single.value, single.low, single.high) == (1.5, -math.inf, math.inf)


def test_ratio_interval_over_equal_denominators_is_the_interval_of_a_mean() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    deviation = math.sqrt(sum((v - 3.5) ** 2 for v in values) / 3)
    estimate = statistics.ratio_interval(values, [1.0] * 4)
    assert estimate.high - estimate.value == pytest.approx(1.959964 * deviation / 2, rel=1e-6)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="successes=5 of trials=4"):
        statistics.wilson_interval(5, 4)
    with pytest.raises(ValueError, match="need at least one pair"):
        statistics.win_rate_interval(0, 0, 0)
    with pytest.raises(ValueError, match="confidence=95"):
        statistics.wilson_interval(1, 2, confidence=95)
