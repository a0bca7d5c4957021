"""Claims of papers, and what came of them here: checks with a rule, over seeds, that can fail."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

Rule = Literal["below", "above", "at_most", "at_least", "holds"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, in a form that a small experiment can refute.

    Attributes:
      id: short name, such as "M1".
      statement: the claim.
      source: paper and section.
      rule: when it passes.
    """

    id: str
    statement: str
    source: str
    rule: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was measured and what was expected of it.

    Attributes:
      what: what was measured, such as "held-out loss, linear decay - constant rate (nats)".
      rule: "below" and "above": every seed lies on that side of the bound, and the mean by more than two standard errors;
        "at_most" and "at_least": the mean does; "holds": every value is 1.
      values: one a seed.
      bound: of the rule.
      judged: False where the figure is only reported.
    """

    what: str
    rule: Rule
    values: tuple[float, ...]
    bound: float = 0.0
    judged: bool = True

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"the check {self.what!r} has no values")
        if self.rule in ("below", "above") and len(self.values) < 2:
            raise ValueError(f"the check {self.what!r} needs two seeds or more, for a standard error")

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for one value."""
        return statistics.stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else 0.0

    @property
    def passed(self) -> bool:
        """Whether the rule holds; a value that is not finite never passes."""
        if not all(map(math.isfinite, self.values)):
            return False
        if self.rule == "holds":
            return all(value == 1 for value in self.values)
        if self.rule in ("at_most", "at_least"):
            return self.mean <= self.bound if self.rule == "at_most" else self.mean >= self.bound
        sign = 1 if self.rule == "above" else -1
        distances = [sign * (value - self.bound) for value in self.values]
        return min(distances) > 0 and statistics.fmean(distances) > 2 * self.standard_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What an experiment found.

    Attributes:
      outcomes: measure -> arm -> one value a seed.
      checks: the first is the claim's headline.
      bed: model, data and tokens, in a sentence.
      note: what the reader should know, such as why a check failed.
    """

    outcomes: Mapping[str, Mapping[str, tuple[float, ...]]]
    checks: tuple[Check, ...]
    bed: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether every judged check passed."""
        return all(check.passed for check in self.checks if check.judged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A finding with how it was made.

    Attributes:
      claim: what was tested.
      finding: what was found.
      seeds: of the runs.
      command: that made it.
      commit: of the code; "+" at its end when files had been changed since.
      seconds: wall time, without parts that an earlier, interrupted run had finished.
      machine: cores and libraries.
      date: UTC, ISO 8601.
    """

    claim: Claim
    finding: Finding
    seeds: tuple[int, ...]
    command: str
    commit: str
    seconds: float
    machine: str
    date: str


def below(what: str, values: Sequence[float], bound: float = 0.0, *, judged: bool = True) -> Check:
    """Every seed below the bound, and the mean by more than two standard errors."""
    return Check(what=what, rule="below", values=_floats(values), bound=bound, judged=judged)


def above(what: str, values: Sequence[float], bound: float = 0.0, *, judged: bool = True) -> Check:
    """Every seed above the bound, and the mean by more than two standard errors."""
    return Check(what=what, rule="above", values=_floats(values), bound=bound, judged=judged)


def at_most(what: str, values: Sequence[float], bound: float, *, judged: bool = True) -> Check:
    """The mean is no more than the bound."""
    return Check(what=what, rule="at_most", values=_floats(values), bound=bound, judged=judged)


def at_least(what: str, values: Sequence[float], bound: float, *, judged: bool = True) -> Check:
    """The mean is no less than the bound."""
    return Check(what=what, rule="at_least", values=_floats(values), bound=bound, judged=judged)


def holds(what: str, values: Sequence[bool], *, judged: bool = True) -> Check:
    """It is so in every seed."""
    return Check(what=what, rule="holds", values=_floats(values), bound=1.0, judged=judged)


def by_arm(arms: Sequence[str], values: Sequence[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """An outcome's table from values [A, S]."""
    return {arm: _floats(row) for arm, row in zip(arms, values, strict=True)}


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
