"""Schedules, optimizers and masks: frozen configs that build optax values."""

from lmx.optim.layout import Layout
from lmx.optim.mup import MuPSimple
from lmx.optim.optimizers import AdamW, Custom, Optimizer, handed_on, in_float32
from lmx.optim.rmsprop import RMSProp
from lmx.optim.schedules import Constant, LinearFrom, Part, Schedule, WarmupCosine, WarmupLinear, WarmupStableDecay

__all__ = [
    "AdamW",
    "Constant",
    "Custom",
    "Layout",
    "LinearFrom",
    "MuPSimple",
    "Optimizer",
    "Part",
    "RMSProp",
    "Schedule",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "handed_on",
    "in_float32",
]
