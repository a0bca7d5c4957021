"""Which component gives the n-th row of a mixture: exact shares, no randomness, no state, also where the weights change."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import grain

# Rows of a mixture, more than any run reads. Grain's own sys.maxsize overflows when it is divided into batches of one row.
ENDLESS = 1 << 52


class ExactShares(grain.transforms.DatasetSelectionMap):
    """Maps a row of the mixture to (component, row of the component); the components must be endless.

    Of the first n rows, component i has given floor or ceiling of its share of those that the components before it left.
    Weights are taken as the decimals they are written as, so 0.7 and 0.3 are seven and three tenths exactly.
    """

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        """Takes the weights.

        Raises:
          ValueError: a weight is not a positive number.
        """
        if not weights or any(not math.isfinite(weight) or weight <= 0 for weight in weights):
            raise ValueError(
                f"mixture weights must be positive numbers, got {list(weights)}; leave out a component instead of giving it 0"
            )
        fractions = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._parts = [int(fraction * scale) for fraction in fractions]

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each component gives."""
        found, left, remaining = [], rows, sum(self._parts)
        for part in self._parts:
            kept = left * (remaining - part) // remaining
            found.append(left - kept)
            left, remaining = kept, remaining - part
        return found

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        # `before` and `after` count the rows left over for the components from i on, among the first `index` and `index + 1`.
        before, after, remaining = index, index + 1, sum(self._parts)
        for component, part in enumerate(self._parts):
            left_before = before * (remaining - part) // remaining
            left_after = after * (remaining - part) // remaining
            if before - left_before != after - left_after:
                return component, before - left_before
            before, after, remaining = left_before, left_after, remaining - part
        raise IndexError(f"row {index} of a mixture")


LINEAR_STEPS = 64
"""Equal steps of constant weights that stand for a straight change between two marks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixPoint:
    """The weights of a mixture at a token mark.

    Attributes:
      from_tokens: tokens of the run, over all processes, after which they hold; rounded up to whole rows of the longest length.
      weights: share of the tokens by component name, relative to each other; components that are not named give nothing.
    """

    from_tokens: int
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        wrong = {name: weight for name, weight in self.weights.items() if not math.isfinite(weight) or weight < 0}
        if wrong:
            raise ValueError(f"mixture weights must be 0 or positive, got {wrong} from token {self.from_tokens} on")
        if not any(self.weights.values()):
            raise ValueError(f"the mixture from token {self.from_tokens} on has no weight above 0; name at least one component")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixSchedule:
    """A mixture that changes with the tokens seen; deterministic, and shares are exact between any two marks.

    Attributes:
      points: from token 0 on, in the order of their marks.
      linear: weights (as shares) move on a straight line from each point to the next, in `LINEAR_STEPS` equal steps, instead of
        staying until it. From the last point on they stay.
    """

    points: tuple[MixPoint, ...]
    linear: bool = False

    def __post_init__(self) -> None:
        marks = [point.from_tokens for point in self.points]
        if not marks or marks[0] != 0:
            raise ValueError(f"a mixture schedule starts with a point from_tokens=0, but its marks are {marks}")
        for before, after in itertools.pairwise(marks):
            if after <= before:
                raise ValueError(f"the mixture schedule goes backwards: the mark {after} follows {before}")

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError when components lack distinct names, or a point names another component."""
        if "" in names or len(set(names)) != len(names):
            raise ValueError(f"a mixture schedule needs components with distinct names, but they are {list(names)}")
        for point in self.points:
            unknown = sorted(set(point.weights).difference(names))
            if unknown:
                raise ValueError(
                    f"the mixture from token {point.from_tokens} on names {', '.join(map(repr, unknown))}; the components are "
                    f"{', '.join(map(repr, names))}"
                )

    def stretches(self, names: Sequence[str], block: int) -> "Stretches":
        """The schedule in blocks of `block` tokens, components in the order of `names`."""
        self.check(names)
        shares = [_shares(point.weights, names) for point in self.points]
        starts: list[int] = []
        weights: list[list[Fraction]] = []
        for index, point in enumerate(self.points):
            last = index == len(self.points) - 1
            steps = 1 if last or not self.linear else LINEAR_STEPS
            distance = 0 if last else self.points[index + 1].from_tokens - point.from_tokens
            for step in range(steps):
                starts.append(-(-(point.from_tokens + distance * step // steps) // block))
                weights.append(shares[index] if steps == 1 else _between(shares[index], shares[index + 1], step, steps))
        return Stretches(starts, weights)


class Stretches:
    """Maps a block of a mixture to (component, block of the component) where weights are constant from start to start."""

    def __init__(self, starts: Sequence[int], weights: Sequence[Sequence[Fraction]]) -> None:
        """Takes the stretches.

        Args:
          starts: first block of each, from 0 on, not falling; a stretch that ends where it starts gives nothing.
          weights: of each, one a component, not all 0.
        """
        self._starts = list(starts)
        # Counts are rounded up for the components in front, so these take turns from stretch to stretch.
        self._active = [_rotated([i for i, weight in enumerate(row) if weight], number) for number, row in enumerate(weights)]
        self._shares = [ExactShares([row[i] for i in active]) for row, active in zip(weights, self._active, strict=True)]
        self._before = [[0] * len(weights[0])]  # blocks of each component before each stretch
        for number, (start, end) in enumerate(itertools.pairwise(starts)):
            taken = list(self._before[-1])
            for component, count in zip(self._active[number], self._shares[number].counts(end - start), strict=True):
                taken[component] += count
            self._before.append(taken)

    def __getitem__(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._starts, index) - 1
        position, block = self._shares[number][index - self._starts[number]]
        component = self._active[number][position]
        return component, self._before[number][component] + block


def _shares(weights: Mapping[str, float], names: Sequence[str]) -> list[Fraction]:
    exact = [Fraction(str(weights.get(name, 0))) for name in names]
    return [weight / sum(exact) for weight in exact]


def _rotated(items: list[int], places: int) -> list[int]:
    places %= len(items)
    return items[places:] + items[:places]


def _between(first: Sequence[Fraction], second: Sequence[Fraction], step: int, steps: int) -> list[Fraction]:
    """The shares in the middle of one of `steps` equal steps from the first to the second."""
    along = Fraction(2 * step + 1, 2 * steps)
    return [a + (b - a) * along for a, b in zip(first, second, strict=True)]
