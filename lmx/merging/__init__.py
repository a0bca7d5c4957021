"""Averages and merges of parameters: of given models, along a run, and inside the optimizer while it runs."""

from lmx.merging.ema import anchor_step, exponential_mean
from lmx.merging.linear import RunningMean, mean
from lmx.merging.methods import Ema, Liti, Mean, Method, Weights
from lmx.merging.online import EMA, Average, AverageState, Uniform, averaging, find_average
from lmx.merging.optimizer import OnlineMerging, OnlineMergingState, with_task_vector
from lmx.merging.task_vectors import Arithmetic, Dare, Slerp, Ties
from lmx.merging.trees import dare, liti, merge, slerp, task_arithmetic, ties, warm, warp

__all__ = [
    "EMA",
    "Arithmetic",
    "Average",
    "AverageState",
    "Dare",
    "Ema",
    "Liti",
    "Mean",
    "Method",
    "OnlineMerging",
    "OnlineMergingState",
    "RunningMean",
    "Slerp",
    "Ties",
    "Uniform",
    "Weights",
    "anchor_step",
    "averaging",
    "dare",
    "exponential_mean",
    "find_average",
    "liti",
    "mean",
    "merge",
    "slerp",
    "task_arithmetic",
    "ties",
    "warm",
    "warp",
    "with_task_vector",
]
