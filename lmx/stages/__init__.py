"""The stages that experiments are made of, one file each: build a TrainSpec, call the loop, leave an artifact."""

from lmx.stages.context_report import ContextReport
from lmx.stages.distill import Distill, ForwardKL, Top1Mix
from lmx.stages.distill_stored import DistillStored, Drawn, Renormalised, StoredTop1Mix, TailBucket
from lmx.stages.evaluate import Evaluate
from lmx.stages.learn_masks import LearnMasks
from lmx.stages.lengthen import Lengthen, LengthGate
from lmx.stages.measure import Bench, Measure
from lmx.stages.preference import Preference
from lmx.stages.pretrain import Pretrain
from lmx.stages.prune import Importance, Prune, Random, Sample
from lmx.stages.reward_model import RewardModel
from lmx.stages.sample_pairs import SamplePairs
from lmx.stages.sft import SFT
from lmx.stages.teacher_logits import TeacherLogits
from lmx.stages.tokenizer import Bytes, SentencePiece, TrainTokenizer
from lmx.stages.training import Training
from lmx.stages.upcycle import Upcycle

__all__ = [
    "SFT",
    "Bench",
    "Bytes",
    "ContextReport",
    "Distill",
    "DistillStored",
    "Drawn",
    "Evaluate",
    "ForwardKL",
    "Importance",
    "LearnMasks",
    "LengthGate",
    "Lengthen",
    "Measure",
    "Preference",
    "Pretrain",
    "Prune",
    "Random",
    "Renormalised",
    "RewardModel",
    "Sample",
    "SamplePairs",
    "SentencePiece",
    "StoredTop1Mix",
    "TailBucket",
    "TeacherLogits",
    "Top1Mix",
    "TrainTokenizer",
    "Training",
    "Upcycle",
]
