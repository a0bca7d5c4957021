"""Point estimates with confidence intervals that hold for small samples and never collapse to zero width."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and the interval around it.

    Attributes:
      value: the point estimate as measured.
      low: lower end of the interval.
      high: upper end.
      count: number of independent observations behind it.
    """

    value: float
    low: float
    high: float
    count: int


def wilson_interval(successes: float, trials: int, *, confidence: float = 0.95) -> Estimate:
    """Proportion of successes with the Wilson score interval.

    Args:
      successes: in [0, trials]; a tie may count half, which makes the interval slightly too wide, never too narrow.
      trials: at least 1.
      confidence: in (0, 1).

    Returns:
      successes / trials and its interval, within [0, 1].

    Reference: Wilson (1927), JASA 22:209-212.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes={successes} of trials={trials}: need at least one trial, and successes between 0 and trials")
    z = _two_sided_z(confidence)
    proportion = successes / trials
    centre = (proportion + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(proportion * (1 - proportion) / trials + z**2 / (4 * trials**2))
    # The ends touch 0 and 1 exactly at no or all successes; rounding must not push them past the estimate.
    return Estimate(proportion, min(max(centre - half, 0.0), proportion), max(min(centre + half, 1.0), proportion), trials)


def difference_of_proportions(a: Estimate, b: Estimate) -> Estimate:
    """a - b for two proportions with Wilson intervals, by Newcombe's hybrid score interval.

    It treats the samples as independent; for two models on the same prompts, whose answers agree more often than chance, it is
    on the safe (wide) side.

    Reference: Newcombe (1998), Statistics in Medicine 17:873-890, method 10.
    """
    difference = a.value - b.value
    low = difference - math.hypot(a.value - a.low, b.high - b.value)
    high = difference + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(difference, low, high, min(a.count, b.count))


def win_rate_interval(wins: int, ties: int, losses: int, *, confidence: float = 0.95) -> Estimate:
    """Win rate over paired comparisons, a tie counting half, with the adjusted Wald interval for paired proportions.

    The win rate is 1/2 + (wins - losses) / (2 n). One win and one loss are added for the interval (not for the estimate), which
    keeps its coverage near the nominal one for few pairs and its width above zero when all pairs tie.

    Args:
      wins: pairs the first policy wins.
      ties: pairs that neither wins.
      losses: pairs it loses.
      confidence: in (0, 1).

    Returns:
      The win rate and its interval, within [0, 1].

    Reference: Bonett & Price (2012), J. Educational and Behavioral Statistics 37:479-488, Eq. 3.
    """
    pairs = wins + ties + losses
    if min(wins, ties, losses) < 0 or pairs < 1:
        raise ValueError(f"wins={wins}, ties={ties}, losses={losses}: need at least one pair and no negative count")
    win, loss = (wins + 1) / (pairs + 2), (losses + 1) / (pairs + 2)
    half = _two_sided_z(confidence) * math.sqrt((win + loss - (win - loss) ** 2) / (pairs + 2))
    value = 0.5 + (wins - losses) / (2 * pairs)
    low, high = (0.5 + (win - loss + sign * half) / 2 for sign in (-1, 1))
    return Estimate(value, min(max(low, 0.0), value), max(min(high, 1.0), value), pairs)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Ratio of two sums over independent units (bits and bytes of held-out rows), with the delta-method interval.

    Args:
      numerators: one a unit.
      denominators: one a unit, of positive sum.
      confidence: in (0, 1).

    Returns:
      sum(numerators) / sum(denominators) and its interval; the interval is the whole line for fewer than two units.

    Reference: Cochran (1977), Sampling Techniques, 3rd ed., Eq. 6.13 (without the finite-population correction).
    """
    if len(numerators) != len(denominators) or math.fsum(denominators) <= 0:
        raise ValueError(
            f"{len(numerators)} numerators, {len(denominators)} denominators: need as many, with a positive sum of denominators"
        )
    units, total = len(numerators), math.fsum(denominators)
    ratio = math.fsum(numerators) / total
    if units < 2:
        return Estimate(ratio, -math.inf, math.inf, units)
    squares = math.fsum((y - ratio * x) ** 2 for y, x in zip(numerators, denominators, strict=True))
    half = _two_sided_z(confidence) * math.sqrt(squares * units / (units - 1)) / total
    return Estimate(ratio, ratio - half, ratio + half, units)


def _two_sided_z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in (0, 1)")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
