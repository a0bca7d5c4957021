"""What an experiment found: the schema of `summary.json`, from which the report is rendered.

Sizes are counts, times seconds, likelihoods bits per byte, shares fractions in [0, 1]. Only `seconds` and `tokens_per_second` may
differ between two runs of the same experiment on the same machine.
"""

import dataclasses
from typing import Literal

from etils import epath

from lmx.core import serialize, storage
from lmx.eval.statistics import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFigures:
    """One stage of the pipeline.

    Attributes:
      name: as in the experiment.
      kind: what it does, e.g. "Distill".
      inputs: names of the stages it reads, or paths of external inputs.
      parameters: of the model it made; None = it made none.
      steps: optimizer steps.
      tokens: tokens trained on.
      seconds: wall time, compilation included.
      tokens_per_second: training throughput, compilation left out.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """Bits per byte that one model or baseline spends on the held-out text.

    Attributes:
      name: stage or baseline.
      kind: "model"; "fitted" = a baseline fitted on the training text; "compressor" = one that saw the held-out text alone.
      value: bits per byte.
    """

    name: str
    kind: Literal["model", "fitted", "compressor"]
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """Bits per byte that one model saves over another on the same rows (`perplexity.improvement`).

    Attributes:
      name: the model in question.
      over: the model it is compared with.
      what: what differs between the two, e.g. "Distillation".
      saved: bits per byte, positive when `name` is better.
    """

    name: str
    over: str
    what: str
    saved: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Likelihoods of one held-out text.

    Attributes:
      text_bytes: all bytes of the text; no end-of-text token counts.
      documents: number of held-out documents.
      entries: models and baselines.
      savings: comparisons of models.
    """

    text_bytes: int
    documents: int
    entries: tuple[BitsPerByte, ...]
    savings: tuple[Saving, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageAccuracy:
    """Exact-match accuracy on held-out prompts after one stage.

    Attributes:
      stage: whose model answered.
      overall: over all prompts.
      tasks: task -> over its prompts.
    """

    stage: str
    overall: Estimate
    tasks: dict[str, Estimate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardAccuracy:
    """Share of held-out pairs that a reward model ranks as labelled, ties half."""

    stage: str
    accuracy: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duel:
    """Win rate of `stage` over `opponent` on held-out prompts, judged by the verifiers, ties half."""

    stage: str
    opponent: str
    wins: int
    ties: int
    losses: int
    rate: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model of a stage answered; `correct` None = nobody checked."""

    stage: str
    text: str
    correct: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One held-out prompt and the answers of several stages to it."""

    task: str
    prompt: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of one run of an experiment.

    Attributes:
      title: headline of the report.
      command: how to run it again.
      stages: in the order they ran.
      text: held-out likelihoods.
      accuracies: in training order; each stage is compared with the one before it.
      rewards: reward models.
      duels: win rates.
      samples: held-out prompts with answers.
      environment: name -> version or description (Python, jax, lmx, device).
      config: the resolved configuration, as text.
    """

    title: str
    command: str = ""
    stages: tuple[StageFigures, ...] = ()
    text: HeldOutText | None = None
    accuracies: tuple[StageAccuracy, ...] = ()
    rewards: tuple[RewardAccuracy, ...] = ()
    duels: tuple[Duel, ...] = ()
    samples: tuple[Sample, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    config: str = ""


def write_summary(path: epath.PathLike, summary: Summary) -> None:
    """Writes `summary.json`."""
    storage.write_json(path, serialize.to_json(summary))


def read_summary(path: epath.PathLike) -> Summary:
    """The summary in a `summary.json`.

    Raises:
      ValueError: the file is not JSON, or not a summary; says where.
    """
    data = storage.read_json(path)
    try:
        return serialize.from_json(Summary, data)
    except ValueError as error:
        raise ValueError(f"{path} is not a summary: {error}") from error
