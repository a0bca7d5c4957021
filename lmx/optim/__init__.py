"""Schedules, optimizers and masks: frozen configs that build optax values."""

from lmx.optim.optimizers import AdamW, Custom, Optimizer, in_float32
from lmx.optim.schedules import Constant, Schedule, WarmupCosine, WarmupLinear, WarmupStableDecay

__all__ = [
    "AdamW",
    "Constant",
    "Custom",
    "Optimizer",
    "Schedule",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "in_float32",
]
