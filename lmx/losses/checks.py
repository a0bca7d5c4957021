"""Ranges of hyperparameters: numbers are checked; arrays, such as a KL coefficient adapted in training, can't be and are not."""

import numbers

from lmx.core.types import Array


def require_positive(**values: float | Array) -> None:
    """Refuses the named numbers that are not greater than 0.

    Raises:
      ValueError: one is zero, negative or NaN.
    """
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not value > 0:
            raise ValueError(f"{name}={value} must be greater than 0; give the loss a positive {name}")


def require_not_negative(**values: float | Array) -> None:
    """Refuses the named numbers that are less than 0.

    Raises:
      ValueError: one is negative or NaN.
    """
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not value >= 0:
            raise ValueError(f"{name}={value} must not be negative; 0 switches its term off")


def require_within(low: float, high: float, **values: float | Array) -> None:
    """Refuses the named numbers that lie outside of [low, high].

    Raises:
      ValueError: one does, or is NaN.
    """
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not low <= value <= high:
            raise ValueError(f"{name}={value} must lie in [{low}, {high}]")
