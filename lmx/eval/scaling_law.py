"""Scaling laws: isoFLOP parabolas, the power law through their minima, and the two-step forecast of a benchmark. NumPy alone.

Reference: Grattafiori et al. (2024), arXiv:2407.21783, section 3.2.1; the parabolas are approach 2 of Hoffmann et al. (2022),
arXiv:2203.15556, section 3.2.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

_MIN_RUNS = 3  # of a budget: a parabola has three coefficients


@dataclasses.dataclass(frozen=True)
class Runs:
    """Training runs of one kind, one entry a run.

    Attributes:
      flops: [n] float64, training budget C of each.
      tokens: [n] float64, tokens N it was trained on.
      loss: [n] float64, held-out nats a token at its end.
    """

    flops: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        sizes = {len(self.flops), len(self.tokens), len(self.loss)}
        if len(sizes) != 1:
            raise ValueError(f"flops, tokens and loss of the runs must be equally many, got {sorted(sizes)}")
        if not (np.all(np.asarray(self.flops) > 0) and np.all(np.asarray(self.tokens) > 0)):
            raise ValueError("flops and tokens of the runs must be positive: their logarithms are fitted")

    def budgets(self) -> list[float]:
        """The distinct budgets, ascending."""
        return sorted(set(np.asarray(self.flops).tolist()))


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The best run of a budget, between the runs.

    Attributes:
      flops: C.
      tokens: where the parabola is lowest.
      loss: there.
      inside: whether it lies between the fewest and the most tokens tried; else it is an extrapolation.
    """

    flops: float
    tokens: float
    loss: float
    inside: bool


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """value = coefficient * x ** exponent."""

    coefficient: float
    exponent: float

    def __call__(self, x: float) -> float:
        """The value at x."""
        return self.coefficient * x**self.exponent


@dataclasses.dataclass(frozen=True)
class TokenLaw:
    """Compute-optimal tokens N*(C) = A C^alpha, with what a bootstrap over the runs says of it.

    Attributes:
      law: the fit.
      minima: of the budgets.
      samples: bootstrap refits.
    """

    law: PowerLaw
    minima: tuple[Minimum, ...]
    samples: tuple[PowerLaw, ...] = dataclasses.field(repr=False)

    def exponent_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile interval of alpha."""
        return _interval([law.exponent for law in self.samples], confidence)

    def tokens_interval(self, flops: float, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile interval of N*(C)."""
        return _interval([law(flops) for law in self.samples], confidence)

    def parameters(self, flops: float, *, flops_per_parameter_token: float = 6.0) -> float:
        """Model size that spends the budget on the optimal tokens: C / (6 N*)."""
        return flops / (flops_per_parameter_token * self.law(flops))


def isoflop_minima(runs: Runs) -> list[Minimum]:
    """The minimum of a parabola in the logarithm of the tokens, for each budget.

    Args:
      runs: at least three of each budget, with different tokens.

    Raises:
      ValueError: a budget has too few runs, or a parabola that opens downwards and has no minimum.
    """
    minima = []
    for budget in runs.budgets():
        own = np.asarray(runs.flops) == budget
        x, y = np.log(np.asarray(runs.tokens, np.float64)[own]), np.asarray(runs.loss, np.float64)[own]
        if len(set(x.tolist())) < _MIN_RUNS:
            raise ValueError(
                f"budget {budget:.3g} has runs at {len(set(x.tolist()))} numbers of tokens; a parabola needs {_MIN_RUNS}"
            )
        a, b, c = np.polyfit(x - x.mean(), y, 2)
        if not a > 0:
            raise ValueError(f"the losses of budget {budget:.3g} have no minimum: their parabola opens downwards ({a:.3g} x^2)")
        best = -b / (2 * a)
        tokens = float(np.exp(best + x.mean()))
        minima.append(Minimum(budget, tokens, float(c - b * b / (4 * a)), bool(x.min() <= best + x.mean() <= x.max())))
    return minima


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y on log x.

    Raises:
      ValueError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f"a power law needs at least two different x, got {sorted(set(x))}")
    exponent, offset = np.polyfit(np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64)), 1)
    return PowerLaw(float(np.exp(offset)), float(exponent))


def fit_token_law(runs: Runs, *, bootstrap: int = 200, seed: int = 0) -> TokenLaw:
    """Compute-optimal tokens as a power of the budget, with a bootstrap of residuals around each parabola.

    Args:
      runs: of at least two budgets.
      bootstrap: refits; in each, every parabola's residuals are drawn again, inflated for the three fitted coefficients.
      seed: of the draws.
    """
    minima = isoflop_minima(runs)
    law = _law(minima)
    generator, fitted = np.random.default_rng(seed), _fitted(runs)
    residuals = np.asarray(runs.loss, np.float64) - fitted
    samples = []
    for _ in range(bootstrap):
        loss = fitted.copy()
        for budget in runs.budgets():
            own = np.flatnonzero(np.asarray(runs.flops) == budget)
            inflation = np.sqrt(len(own) / max(len(own) - 3, 1))
            loss[own] += inflation * residuals[generator.choice(own, len(own))]
        try:
            samples.append(_law(isoflop_minima(Runs(runs.flops, runs.tokens, loss))))
        except ValueError:  # noise turned a parabola over; a draw without a minimum says nothing of where it is
            continue
    if len(samples) < bootstrap // 2:
        raise ValueError(f"only {len(samples)} of {bootstrap} bootstrap draws have a minimum at every budget; train more runs")
    return TokenLaw(law, tuple(minima), tuple(samples))


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Budget -> negative log-likelihood of the right answer -> accuracy.

    Attributes:
      slope: nats a decade of FLOPs.
      intercept: nats at 1 FLOP.
      low: accuracy of a model that knows nothing.
      high: accuracy that the sigmoid ends at.
      middle: nats at which it is half way.
      steepness: > 0, per nat.
    """

    slope: float
    intercept: float
    low: float
    high: float
    middle: float
    steepness: float

    def nll(self, flops: float) -> float:
        """Normalised negative log-likelihood of the right answer at a budget."""
        return self.intercept + self.slope * float(np.log10(flops))

    def accuracy_at(self, nll: np.ndarray | float) -> np.ndarray:
        """Accuracy of models with such a likelihood."""
        return _sigmoid(np.asarray(nll, np.float64), np.array([self.low, self.high, self.middle, self.steepness]))

    def accuracy(self, flops: float) -> float:
        """Accuracy at a budget: both steps."""
        return float(self.accuracy_at(self.nll(flops)))


def fit_forecast(
    flops: Sequence[float],
    nll: Sequence[float],
    observed_nll: Sequence[float],
    observed_accuracy: Sequence[float],
    *,
    chance: float | None = None,
) -> Forecast:
    """The two-step forecast: a line in log FLOPs, then a sigmoid from likelihood to accuracy.

    Args:
      flops: [n] budgets of the compute-optimal models.
      nll: [n] their negative log-likelihood of the right answer, per character.
      observed_nll: [m] of all models whose accuracy is known, others than these too (Llama 3.1 adds the Llama 2 models).
      observed_accuracy: [m] in [0, 1].
      chance: accuracy of guessing, which the sigmoid starts from; None = fitted.

    Raises:
      ValueError: fewer than two budgets, or fewer models with a known accuracy than the sigmoid has coefficients.
    """
    if len(set(flops)) < 2:
        raise ValueError(f"the line needs at least two budgets, got {len(set(flops))}")
    free = 4 if chance is None else 3
    if len(observed_nll) != len(observed_accuracy) or len(observed_nll) < free:
        raise ValueError(
            f"the sigmoid has {free} coefficients and needs as many models with a known accuracy, got {len(observed_nll)} "
            f"likelihoods and {len(observed_accuracy)} accuracies"
        )
    slope, intercept = np.polyfit(np.log10(np.asarray(flops, np.float64)), np.asarray(nll, np.float64), 1)
    x, y = np.asarray(observed_nll, np.float64), np.asarray(observed_accuracy, np.float64)
    low, high, middle, steepness = _fit_sigmoid(x, y, chance)
    return Forecast(float(slope), float(intercept), low, high, middle, steepness)


def _sigmoid(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    low, high, middle, steepness = coefficients
    return low + (high - low) / (1 + np.exp(np.clip(steepness * (x - middle), -60, 60)))


def _fit_sigmoid(x: np.ndarray, y: np.ndarray, chance: float | None) -> tuple[float, float, float, float]:
    """Least squares by Levenberg-Marquardt from several steepnesses, the best of which is taken."""
    low = float(y.min()) if chance is None else chance
    spread = max(float(np.ptp(x)), 1e-6)
    fits = []
    for steepness in (2 / spread, 6 / spread, 20 / spread):
        start = np.array([low, max(float(y.max()), low + 1e-3), float(np.median(x)), np.log(steepness)])
        fits.append(
            _levenberg_marquardt(lambda p: _sigmoid(x, np.array([*p[:3], np.exp(p[3])])) - y, start, fixed=chance is not None)
        )
    best = min(fits, key=lambda fit: fit[1])[0]
    return float(best[0]), float(best[1]), float(best[2]), float(np.exp(best[3]))


def _levenberg_marquardt(
    residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, fixed: bool, steps: int = 400
) -> tuple[np.ndarray, float]:
    """(coefficients, sum of squares); `fixed` leaves the first coefficient where it starts."""
    free = np.arange(1 if fixed else 0, len(start))
    point, damping = start.astype(np.float64), 1e-2
    value = residuals(point)
    for _ in range(steps):
        jacobian = np.stack([_derivative(residuals, point, int(i)) for i in free], axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ value
        move = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal) + 1e-12), -gradient, rcond=None)[0]
        trial = point.copy()
        trial[free] += move
        after = residuals(trial)
        if after @ after < value @ value:
            done = value @ value - after @ after < 1e-16 * (1e-16 + value @ value)
            point, value, damping = trial, after, max(damping / 3, 1e-12)
            if done:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return point, float(value @ value)


def _derivative(residuals: Callable[[np.ndarray], np.ndarray], point: np.ndarray, index: int) -> np.ndarray:
    step = 1e-6 * max(1.0, abs(point[index]))
    shift = np.zeros_like(point)
    shift[index] = step
    return (residuals(point + shift) - residuals(point - shift)) / (2 * step)


def _fitted(runs: Runs) -> np.ndarray:
    """Each run's loss on its budget's parabola."""
    fitted = np.zeros(len(runs.loss))
    for budget in runs.budgets():
        own = np.asarray(runs.flops) == budget
        x = np.log(np.asarray(runs.tokens, np.float64)[own])
        x = x - x.mean()
        fitted[own] = np.polyval(np.polyfit(x, np.asarray(runs.loss, np.float64)[own], 2), x)
    return fitted


def _law(minima: Sequence[Minimum]) -> PowerLaw:
    return fit_power_law([point.flops for point in minima], [point.tokens for point in minima])


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    if not values:
        raise ValueError("there are no bootstrap draws; fit with bootstrap > 0")
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(values), [tail, 1 - tail])
    return float(low), float(high)
