"""Exact-match accuracy and win rates on prompts whose answers a program can check (`lmx.rewards.verify`)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmx.core.types import Params
from lmx.eval.statistics import Estimate, wilson_interval, win_rate_interval
from lmx.model.decoder import Model
from lmx.sampling.generate import Sampling, generate
from lmx.tokenizer.prompt import PromptTemplate
from lmx.tokenizer.protocol import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of problems answered exactly right, with Wilson intervals.

    Attributes:
      overall: over all problems.
      tasks: task -> over its problems, in order of name.
    """

    overall: Estimate
    tasks: dict[str, Estimate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often one policy's answers score above another's on the same prompts.

    Attributes:
      wins: prompts on which the first policy scores higher.
      ties: prompts on which both score the same.
      losses: prompts on which it scores lower.
      rate: (wins + ties / 2) / prompts, with its interval.
    """

    wins: int
    ties: int
    losses: int
    rate: Estimate


def answers(
    model: Model,
    params: Params,
    prompts: Sequence[str],
    *,
    tokenizer: Tokenizer,
    template: PromptTemplate,
    sampling: Sampling,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """The model's answer to each prompt, as text.

    Args:
      model: a language model.
      params: its parameters.
      prompts: plain text.
      tokenizer: that of the model; ids it can't decode are never drawn.
      template: the text around prompt and answer that the model was trained with.
      sampling: temperature 0 for greedy answers.
      seed: of the drawing.
      batch_size: most prompts at once.

    Returns:
      One text a prompt, without the template and without special tokens.
    """
    sampling = dataclasses.replace(sampling, vocab_size=min(tokenizer.vocab_size, sampling.vocab_size or tokenizer.vocab_size))
    completions = generate(
        model,
        params,
        [template.prompt_ids(tokenizer, prompt) for prompt in prompts],
        sampling=sampling,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        seed=seed,
        batch_size=batch_size,
    )
    return [template.response_text(tokenizer, completion.tokens) for completion in completions]


def accuracy(scores: np.ndarray, tasks: Sequence[str], *, confidence: float = 0.95) -> Accuracy:
    """Share of answers that are exactly right, over all prompts and by task.

    Args:
      scores: [B] verifiers' scores in [0, 1], B >= 1; a score of 1 is right.
      tasks: [B] name of each prompt's task.
      confidence: of the intervals.
    """
    if len(scores) != len(tasks) or not len(scores):
        raise ValueError(f"{len(scores)} scores for {len(tasks)} task names; give one each, and at least one")
    right: dict[str, list[bool]] = {}
    for score, task in zip(scores, tasks, strict=True):
        right.setdefault(task, []).append(bool(score >= 1))
    by_task = {task: wilson_interval(sum(hits), len(hits), confidence=confidence) for task, hits in sorted(right.items())}
    return Accuracy(overall=wilson_interval(sum(map(sum, right.values())), len(scores), confidence=confidence), tasks=by_task)


def win_rate(policy: np.ndarray, opponent: np.ndarray, *, confidence: float = 0.95) -> WinRate:
    """Win rate of one policy over another, judged by the scores of their answers to the same prompts; ties count half.

    Args:
      policy: [B] score of its answer to each prompt, B >= 1.
      opponent: [B] score of the other's, in the same order.
      confidence: of the interval.
    """
    if len(policy) != len(opponent) or not len(policy):
        raise ValueError(f"{len(policy)} scores against {len(opponent)}; pair them prompt by prompt, at least one")
    wins, losses = (int(np.sum(comparison)) for comparison in (np.greater(policy, opponent), np.less(policy, opponent)))
    ties = len(policy) - wins - losses
    return WinRate(wins=wins, ties=ties, losses=losses, rate=win_rate_interval(wins, ties, losses, confidence=confidence))
