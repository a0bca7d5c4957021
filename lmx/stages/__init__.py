"""The stages that experiments are made of, one file each: build a TrainSpec, call the loop, leave an artifact."""

from lmx.stages.distill import Distill, ForwardKL, Top1Mix
from lmx.stages.evaluate import Evaluate
from lmx.stages.preference import Preference
from lmx.stages.pretrain import Pretrain
from lmx.stages.reward_model import RewardModel
from lmx.stages.sample_pairs import SamplePairs
from lmx.stages.sft import SFT
from lmx.stages.tokenizer import Bytes, SentencePiece, TrainTokenizer
from lmx.stages.training import Training

__all__ = [
    "SFT",
    "Bytes",
    "Distill",
    "Evaluate",
    "ForwardKL",
    "Preference",
    "Pretrain",
    "RewardModel",
    "SamplePairs",
    "SentencePiece",
    "Top1Mix",
    "TrainTokenizer",
    "Training",
]
