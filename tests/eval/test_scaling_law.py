"""Scaling-law fits on data whose law is known."""

import numpy as np
import pytest

from lmx.eval.scaling_law import Forecast, Runs, fit_forecast, fit_power_law, fit_token_law, isoflop_minima

A, ALPHA = 0.3, 0.53


def synthetic(noise: float = 0.0, seed: int = 0) -> Runs:
    random, rows = np.random.default_rng(seed), []
    for flops in (1e14, 1e15, 1e16, 1e17):
        best = A * flops**ALPHA
        for factor in np.geomspace(0.25, 4, 7):
            loss = 2 + 30 * flops**-0.06 + 0.05 * np.log(factor) ** 2 + noise * random.normal()
            rows.append((flops, best * factor, loss))
    return Runs(*map(np.array, zip(*rows, strict=True)))


def test_exact_parabolas_give_back_their_law() -> None:
    found = fit_token_law(synthetic(), bootstrap=5)
    assert found.law.exponent == pytest.approx(ALPHA, rel=1e-6) and found.law.coefficient == pytest.approx(A, rel=1e-4)
    assert all(point.inside and point.tokens == pytest.approx(A * point.flops**ALPHA, rel=1e-6) for point in found.minima)
    assert found.minima[0].loss == pytest.approx(2 + 30 * 1e14**-0.06)
    assert found.law(1e20) == pytest.approx(A * 1e20**ALPHA, rel=1e-3)
    assert found.parameters(1e20) == pytest.approx(1e20 / (6 * found.law(1e20)))


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(20):
        low, high = fit_token_law(synthetic(0.004, seed), bootstrap=60).exponent_interval(0.9)
        covered += low <= ALPHA <= high
    assert covered >= 15


def test_a_minimum_beyond_the_runs_is_called_an_extrapolation() -> None:
    tokens = np.array([1e6, 2e6, 4e6])
    runs = Runs(np.full(3, 1e12), tokens, 0.1 * np.log(tokens / 1e7) ** 2)
    (found,) = isoflop_minima(runs)
    assert found.tokens == pytest.approx(1e7) and not found.inside


def test_the_two_step_forecast_finds_line_and_sigmoid() -> None:
    truth = Forecast(slope=-0.12, intercept=3.2, low=0.25, high=0.95, middle=0.7, steepness=9.0)
    flops = np.geomspace(1e18, 1e22, 6)
    nll = [truth.nll(c) for c in flops]
    observed = np.linspace(0.35, 1.1, 12)
    for chance in (0.25, None):
        found = fit_forecast(list(flops), nll, list(observed), list(truth.accuracy_at(observed)), chance=chance)
        assert found.accuracy(3.8e25) == pytest.approx(truth.accuracy(3.8e25), abs=1e-3)
        assert found.slope == pytest.approx(-0.12) and found.steepness == pytest.approx(9.0, rel=1e-2)
    noisy = truth.accuracy_at(observed) + np.random.default_rng(0).normal(size=12) * 0.01
    found = fit_forecast(list(flops), nll, list(observed), list(noisy), chance=0.25)
    assert found.accuracy(3.8e25) == pytest.approx(truth.accuracy(3.8e25), abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Runs(np.ones(2), np.ones(3), np.ones(2)), "must be equally many"),
        (lambda: Runs(np.ones(2), np.zeros(2), np.ones(2)), "must be positive"),
        (lambda: isoflop_minima(Runs(np.ones(2), np.array([1.0, 2.0]), np.ones(2))), "has runs at 2 numbers of tokens"),
        (
            lambda: isoflop_minima(Runs(np.ones(3), np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.0]))),
            "have no minimum: their parabola opens downwards",
        ),
        (lambda: fit_power_law([1.0, 1.0], [2.0, 3.0]), "at least two different x"),
        (lambda: fit_forecast([1.0], [1.0], [1.0] * 4, [0.5] * 4), "at least two budgets"),
        (lambda: fit_forecast([1.0, 10.0], [2.0, 1.0], [1.0] * 3, [0.5] * 3), "has 4 coefficients"),
    ],
)
def test_too_little_to_fit_is_one_sentence(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
