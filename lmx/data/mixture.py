"""Which component gives the n-th row of a mixture: exact shares, no randomness, no state."""

import math
from collections.abc import Sequence
from fractions import Fraction

import grain

# Rows of a mixture, more than any run reads. Grain's own sys.maxsize overflows when it is divided into batches of one row.
ENDLESS = 1 << 52


class ExactShares(grain.transforms.DatasetSelectionMap):
    """Maps a row of the mixture to (component, row of the component); the components must be endless.

    Of the first n rows, component i has given floor or ceiling of its share of those that the components before it left.
    Weights are taken as the decimals they are written as, so 0.7 and 0.3 are seven and three tenths exactly.
    """

    def __init__(self, weights: Sequence[float]) -> None:
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
