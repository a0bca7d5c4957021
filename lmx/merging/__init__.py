"""Averages of parameters: of given models, along a run, and inside the optimizer while it runs."""

from lmx.merging.ema import exponential_mean
from lmx.merging.linear import RunningMean, mean
from lmx.merging.online import EMA, Average, AverageState, Uniform, averaging, find_average

__all__ = ["EMA", "Average", "AverageState", "RunningMean", "Uniform", "averaging", "exponential_mean", "find_average", "mean"]
