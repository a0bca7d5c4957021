"""A whole small language model from real text: tokenizer, teacher, distilled student, SFT, reward model, DPO, evaluation.

lmx run experiments/quickstart.py --workdir runs/quickstart        (or: make run)

Hardware: a laptop's CPU, 2 cores, about 8 minutes.  The text is Python's own documentation and source, so nothing is downloaded.
Gemma 2's recipe at toy size, windows, soft caps and all: a teacher reads the text and a smaller student learns the teacher's whole
next-token distribution, while a twin of the student learns from the labels alone. The student is then taught to answer problems
that a program can check, samples answers of its own, and learns to prefer the right ones.
"""

from functools import partial

from configs.data import python_corpus, tasks
from configs.models import tiny
from lmx.losses.preference import dpo_loss
from lmx.optim import AdamW, WarmupCosine, WarmupLinear
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import Ref, Stage
from lmx.sampling.generate import Sampling
from lmx.stages import (
    SFT,
    Distill,
    Evaluate,
    Preference,
    Pretrain,
    RewardModel,
    SamplePairs,
    SentencePiece,
    Training,
    TrainTokenizer,
)
from lmx.stages.evaluate import RewardEvaluation, TaskEvaluation, TextEvaluation
from lmx.stages.pairs import PairFormat
from lmx.tokenizer.sentencepiece import SentencePieceTraining
from lmx.train.config import LoopConfig

VOCAB_SIZE = 2048
LENGTH = 256
TASKS = tasks.all_tasks(max_digits=2, max_letters=5, max_words=4)


def reading(*, steps: int) -> Training:
    """How the three language models read text."""
    return Training(
        loop=LoopConfig(steps=steps, log_every=20, eval_every=100, eval_batches=20, checkpoint_every=100),
        optimizer=AdamW(schedule=WarmupCosine(peak=4e-3, warmup_steps=20, end_ratio=0.05)),
        batch_size=8,
        length=LENGTH,
    )


def answering(*, steps: int) -> Training:
    """How the student learns to answer."""
    return Training(
        loop=LoopConfig(steps=steps, log_every=20, eval_every=100, eval_batches=8, checkpoint_every=100),
        optimizer=AdamW(schedule=WarmupLinear(peak=4e-3, warmup_steps=20, end_ratio=0.05), weight_decay=0.01),
        batch_size=32,
        length=128,
    )


def comparing(*, steps: int, peak: float) -> Training:
    """How the reward model and the policy read preference pairs."""
    return Training(
        loop=LoopConfig(steps=steps, log_every=10, eval_every=50, eval_batches=8, checkpoint_every=50),
        optimizer=AdamW(schedule=WarmupLinear(peak=peak, warmup_steps=10, end_ratio=0.1), weight_decay=0.0),
        batch_size=32,
        length=48,
    )


def get_config() -> Experiment:
    """The pipeline."""
    text = python_corpus.mixture()
    teacher = tiny.gemma2(
        VOCAB_SIZE, model_dim=192, num_layers=6, q_heads=6, kv_heads=3, head_dim=32, ffn_dim=512, window=64, max_length=LENGTH
    )
    student = tiny.gemma2(
        VOCAB_SIZE, model_dim=128, num_layers=4, q_heads=4, kv_heads=2, head_dim=32, ffn_dim=352, window=64, max_length=LENGTH
    )
    sampling = Sampling(max_new_tokens=16, temperature=1.0)
    pairs = PairFormat(drop_too_long=True)  # a garbled answer may take more tokens to write down than it took to draw
    stages: dict[str, Stage] = dict(
        tokenizer=TrainTokenizer(data=text, vocabulary=SentencePiece(training=SentencePieceTraining(vocab_size=VOCAB_SIZE))),
        teacher=Pretrain(model=teacher, tokenizer=Ref("tokenizer"), data=text, training=reading(steps=240)),
        student=Distill(student=student, teacher=Ref("teacher"), data=text, training=reading(steps=160)),
        labels_only=Pretrain(model=student, tokenizer=Ref("tokenizer"), data=text, training=reading(steps=160)),
        sft=SFT(source=Ref("student"), data=tasks.instructions(TASKS, count=40_000), training=answering(steps=240)),
        pairs=SamplePairs(
            policy=Ref("sft"),
            problems=tasks.problems(TASKS, count=5_000, seed=1),
            sampling=sampling,
            pairs_per_prompt=2,
            use_answers=False,
        ),
        reward_model=RewardModel(source=Ref("sft"), pairs=Ref("pairs"), format=pairs, training=comparing(steps=80, peak=1e-3)),
        dpo=Preference(
            policy=Ref("sft"),
            pairs=Ref("pairs"),
            format=pairs,
            loss=partial(dpo_loss, beta=0.1),
            nll_weight=1.0,  # without it, right answers lose likelihood along with the wrong ones
            training=comparing(steps=120, peak=5e-4),
        ),
    )
    report = Evaluate(
        title="lmx quickstart",
        command="lmx run experiments/quickstart.py --workdir WORKDIR",
        stages=tuple(Ref(name) for name in stages),
        text=TextEvaluation(
            models=(Ref("teacher"), Ref("student"), Ref("labels_only")),
            heldout=python_corpus.evaluation(150_000),
            train=text,
            comparisons=(("student", "labels_only", "Distillation"),),
        ),
        tasks=TaskEvaluation(
            policies=(Ref("student"), Ref("sft"), Ref("dpo")),
            problems=tasks.problems(TASKS, count=1, heldout_count=2_000, seed=2),
            sampling=sampling,
            duels=(("dpo", "sft"),),
        ),
        rewards=RewardEvaluation(model=Ref("reward_model"), pairs=Ref("pairs"), format=pairs, length=48),
    )
    return Experiment(name="quickstart", seed=0, stages={**stages, "report": report})
