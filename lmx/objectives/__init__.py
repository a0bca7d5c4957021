"""Objectives join models and losses: (params, frozen, batch, key) -> (terms, metrics)."""

from lmx.objectives.distillation import distillation, top1_distillation
from lmx.objectives.lm import language_model
from lmx.objectives.preference import preference
from lmx.objectives.reward import reward
from lmx.objectives.router import RouterLoss
from lmx.objectives.sequence import sequence_logprobs, sequence_rewards
from lmx.objectives.stored import stored_distillation

__all__ = [
    "RouterLoss",
    "distillation",
    "language_model",
    "preference",
    "reward",
    "sequence_logprobs",
    "sequence_rewards",
    "stored_distillation",
    "top1_distillation",
]
