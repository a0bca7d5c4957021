"""What the recipes share: the setting in which one runs, ramps from token marks, and where figures come from."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from configs.data import domains
from lmx.core.types import Precision
from lmx.data.ramp import Phase, Ramp
from lmx.data.recall import Facts
from lmx.data.sources import Source
from lmx.eval.needle import NeedleTest
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import Ref, Stage
from lmx.sharding.mesh import MeshConfig
from lmx.stages import ContextReport, Evaluate, SentencePiece, TrainTokenizer
from lmx.stages.evaluate import TextEvaluation
from lmx.tokenizer.sentencepiece import SentencePieceTraining
from lmx.train.config import LoopConfig

Figures = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a recipe needs besides its figures.

    Attributes:
      domains: text by the names that the recipe's mixtures use.
      vocab_size: pieces of the tokenizer.
      tokenizer_bytes: of the sample that it is learned from.
      precision: dtypes of parameters and activations.
      remat: None, "full" or "dots".
      log_every: steps between lines of metrics.
      looks: held-out evaluations and checkpoints of a stage.
      origin: how figures that the report gives are labelled: "report", or "report, scaled" where the recipe runs at another scale.
    """

    domains: Mapping[str, Source]
    vocab_size: int
    tokenizer_bytes: int = 10_000_000_000
    precision: Precision = Precision(params="float32", activations="bfloat16")
    remat: str | None = "full"
    log_every: int = 100
    looks: int = 100
    origin: str = "report"

    def tokenizer(self, *names: str) -> TrainTokenizer:
        """A SentencePiece vocabulary of the named domains, in equal parts."""
        text = domains.mixture(self.domains, dict.fromkeys(names, 1.0))
        training = SentencePieceTraining(vocab_size=self.vocab_size, max_bytes=self.tokenizer_bytes)
        return TrainTokenizer(data=text, vocabulary=SentencePiece(training=training))

    def loop(self, steps: int, *, keep_every: int | None = None, nonfinite: Literal["stop", "skip"] = "stop") -> LoopConfig:
        """The loop of a stage of so many steps."""
        every = max(1, steps // self.looks)
        return LoopConfig(
            steps=steps,
            log_every=min(self.log_every, steps),
            eval_every=every,
            checkpoint_every=keep_every or every,
            keep_every=keep_every,
            nonfinite=nonfinite,
        )

    def figures(self, *, report: str = "", code: str = "", derived: str = "", choice: Mapping[str, str] | None = None) -> Figures:
        """Where a stage's figures come from.

        Args:
          report: names of figures that the report gives, with commas between them.
          code: of those in the code or weights that the authors released.
          derived: of those that follow from the others.
          choice: name -> why, of those that are open in the report.
        """
        given = [(report, self.origin), (code, "released code"), (derived, "derived")]
        found = {name.strip(): origin for names, origin in given for name in names.split(",") if name.strip()}
        return found | {name: f"choice: {why}" for name, why in (choice or {}).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper's pipeline at one scale.

    Attributes:
      stages: by name.
      figures: stage -> what -> where it comes from.
    """

    stages: Mapping[str, Stage]
    figures: Mapping[str, Figures]

    def experiment(
        self, name: str, *, mesh: MeshConfig | None = None, seed: int = 0, more: Mapping[str, Stage] | None = None
    ) -> Experiment:
        """The experiment, with further stages behind the recipe's."""
        stages = {**self.stages, **(more or {})}
        return Experiment(name=name, seed=seed, mesh=mesh or MeshConfig(), stages=stages, figures=self.figures)


def ramp(*shapes: tuple[float, int, int]) -> tuple[Phase, ...]:
    """Phases from (token mark, tokens of a batch, length); marks are moved to the nearest whole batch.

    A mark of 252 million tokens is reached by 60 batches of 1,024 rows of 4,096, after 251,658,240 tokens.
    """
    phases: list[Phase] = []
    for mark, batch_tokens, length in shapes:
        start = 0
        if phases:
            # Batches are powers of two times rows, so a mark on whole batches cuts no row of the next length either.
            before = phases[-1]
            unit = math.lcm(before.batch_tokens, length)
            start = before.from_tokens + max(1, round((mark - before.from_tokens) / unit)) * unit
        phases.append(Phase(from_tokens=start, batch_size=batch_tokens // length, length=length))
    return tuple(phases)


def steps_of(tokens: float, batch_tokens: int, *more: Phase) -> int:
    """The fewest batches that hold so many tokens; with phases, of a ramp."""
    return Ramp(more).steps(round(tokens)) if more else math.ceil(tokens / batch_tokens)


def cosine_after(schedule: WarmupCosine, step: int, total: int) -> float:
    """The rate of a warm-up and cosine over `total` steps after so many of them, past the warm-up."""
    progress = (step - schedule.warmup_steps) / (total - schedule.warmup_steps)
    return schedule.peak * (schedule.end_ratio + (1 - schedule.end_ratio) * (1 + math.cos(math.pi * progress)) / 2)


def needle_test(facts: Facts, *, samples: int = 8) -> NeedleTest:
    """Needles at five depths."""
    return NeedleTest(facts=facts, samples=samples, batch_size=samples)


def mini_setting(*, long_characters: int, vocab_size: int = 2_048) -> Setting:
    """A CPU: stand-in domains, float32, a small vocabulary, few looks."""
    return Setting(
        domains=domains.stand_ins(long_characters=long_characters),
        vocab_size=vocab_size,
        tokenizer_bytes=4_000_000,
        precision=Precision(),
        remat=None,
        log_every=20,
        looks=4,
        origin="report, scaled",
    )


def mini_report(
    recipe: Recipe, setting: Setting, *, models: Iterable[str], length: int, lengths: tuple[int, ...], command: str, title: str
) -> dict[str, Stage]:
    """The stages that judge a mini run: bits per byte of each model, and loss by position and needles of the last ones.

    Args:
      recipe: what was run.
      setting: its setting.
      models: stages whose models are judged.
      length: rows of the bits per byte.
      lengths: at which loss by position and needles are measured, where a model takes so much.
      command: how to run it, for the report.
      title: of the report.
    """
    names = tuple(models)
    text = domains.mixture(setting.domains, {"web": 1.0, "code": 1.0})
    refs = tuple(Ref(name) for name in names)
    return {
        "context": ContextReport(
            models=refs,
            data=domains.mixture(setting.domains, {"long documents": 1.0}),
            lengths=lengths,
            needle=needle_test(domains.SMALL_FACTS),
        ),
        "report": Evaluate(
            title=title,
            command=command,
            stages=tuple(Ref(name) for name in recipe.stages),
            text=TextEvaluation(models=refs, heldout=text, train=text, length=length),
        ),
    }
