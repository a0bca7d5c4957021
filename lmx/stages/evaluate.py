"""The stage that judges the models of an experiment and writes `summary.json` and `report.html`."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
from etils import epath

from lmx.core.logging import logger
from lmx.data.generated import GeneratedTasks
from lmx.data.text import PackedText
from lmx.eval import curves, report, summary, verifiable
from lmx.eval.baselines import byte_baselines
from lmx.eval.perplexity import HeldOut, bits_per_byte, improvement
from lmx.eval.reward import preference_accuracy
from lmx.eval.summary import (
    Answer,
    BitsPerByte,
    Duel,
    HeldOutText,
    RewardAccuracy,
    Sample,
    Saving,
    StageAccuracy,
    StageFigures,
    Summary,
)
from lmx.model.accounting import count_parameters
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact, LoadedModel
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field
from lmx.rewards import verify
from lmx.rewards.verify import Verifier, exact_answer
from lmx.sampling.generate import Sampling
from lmx.stages import training as stage_training
from lmx.stages.pairs import PairFormat
from lmx.tokenizer.prompt import PromptTemplate

Source = Ref | External
_CURVES = {"train/loss": "training", "eval/loss": "held-out"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """Held-out bits per byte of language models, beside baselines on the same bytes.

    Attributes:
      models: language models that share a tokenizer.
      heldout: its split "heldout" is judged on.
      train: its split "train" is what the fitted baselines learn from.
      comparisons: (model, model it is compared with, what differs), by names of stages.
      batch_size: rows at once.
      length: T, tokens of a row.
    """

    models: tuple[Source, ...] = input_field("model")
    heldout: PackedText
    train: PackedText
    comparisons: tuple[tuple[str, str, str], ...] = ()
    batch_size: int = 8
    length: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """Exact-match accuracy of policies on held-out problems, and their win rates over each other.

    Attributes:
      policies: language models in the order of their training; each is compared with the one before.
      problems: the split "heldout" is asked.
      sampling: how answers are drawn.
      duels: (policy, opponent), by names of stages.
      template: the text around a prompt.
      verify: (row, response) -> whether the response is right.
      num_samples: problems whose answers are shown in the report.
      batch_size: rows generated at once.
    """

    policies: tuple[Source, ...] = input_field("model")
    problems: GeneratedTasks
    sampling: Sampling
    duels: tuple[tuple[str, str], ...] = ()
    template: PromptTemplate = PromptTemplate()
    verify: Verifier = exact_answer
    num_samples: int = 8
    batch_size: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardEvaluation:
    """Accuracy of a reward model on held-out preference pairs.

    Attributes:
      model: the reward model.
      pairs: the pairs.
      format: how pairs become batches.
      batch_size: pairs at once.
      length: T, tokens of a row.
    """

    model: Source = input_field("reward_model")
    pairs: Source = input_field("dataset")
    format: PairFormat = PairFormat()
    batch_size: int = 32
    length: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judges models and writes `summary.json` and `report.html`, also into the experiment's own folder.

    Attributes:
      title: headline of the report.
      stages: the stages that the report draws and whose loss curves it shows, in order.
      text: bits per byte to measure; None = none. So for `tasks` and `rewards`.
      tasks: accuracies and win rates to measure.
      rewards: the reward model to measure.
      command: how to run the experiment again, for the report.
    """

    produces: ClassVar[str] = "report"
    title: str
    stages: tuple[Source, ...] = input_field("tokenizer", "model", "reward_model", "dataset", default=())
    text: TextEvaluation | None = None
    tasks: TaskEvaluation | None = None
    rewards: RewardEvaluation | None = None
    command: str = ""

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        if self.text is not None:
            names = _names(self.text.models, upstream, "text.models")
            for path in names:
                model = stage_training.require_language_model(upstream, path)
                stage_training.check_length(self.text.length, model, "text.length")
            _check_names("text.models", names.values(), "text.comparisons", self._compared())
        if self.tasks is not None:
            names = _names(self.tasks.policies, upstream, "tasks.policies")
            for path in names:
                model = stage_training.require_language_model(upstream, path)
                stage_training.check_room(self.tasks.sampling, model, "tasks.sampling")
            _check_names("tasks.policies", names.values(), "tasks.duels", self._dueling())
        if self.rewards is not None:
            model = stage_training.require_architecture(upstream, "rewards.model")
            stage_training.check_length(self.rewards.length, model, "rewards.length")

    def _compared(self) -> set[str]:
        return set() if self.text is None else {name for first, second, _ in self.text.comparisons for name in (first, second)}

    def _dueling(self) -> set[str]:
        return set() if self.tasks is None else {name for duel in self.tasks.duels for name in duel}

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; it takes less than a minute on small models, so an interrupted run starts over."""
        stages = _tuple_inputs(inputs, "stages")
        accuracies, duels, samples = _judge_tasks(self.tasks, _models(inputs, "tasks.policies"), context)
        found = Summary(
            title=self.title,
            command=self.command,
            stages=tuple(_figures(artifact) for artifact in stages),
            text=None if self.text is None else _judge_text(self.text, _models(inputs, "text.models"), context),
            accuracies=accuracies,
            rewards=() if self.rewards is None else (_judge_rewards(self.rewards, inputs, context),),
            duels=duels,
            samples=samples,
            environment=artifacts.versions() | {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"},
            config=_config_text(context.experiment_dir),
        )
        lines = {_artifact_name(artifact): curves.read_curves(artifact.path / "metrics.jsonl", _CURVES) for artifact in stages}
        for folder in (context.workdir, context.experiment_dir):
            summary.write_summary(folder / "summary.json", found)
            report.write_report(folder / "report.html", found, {name: curve for name, curve in lines.items() if curve})
        logger.info("report: %s", context.experiment_dir / "report.html")
        return StageResult(metrics=_headline(found))


def _check_names(field: str, judged: Iterable[str], other: str, named: set[str]) -> None:
    """Raises ValueError when a field judges a stage twice, or the other one names a stage that is not judged."""
    known = sorted(judged)
    twice = next((name for name, after in itertools.pairwise(known) if name == after), None)
    if twice is not None:
        raise ValueError(f"{field} names {twice!r} twice; judge each model once")
    unknown = sorted(named.difference(known))
    if unknown:
        raise ValueError(f"{other} names {', '.join(unknown)}, which is not judged; judged are {', '.join(known)}")


def _judge_text(config: TextEvaluation, models: Mapping[str, LoadedModel], context: StageContext) -> HeldOutText:
    stage_training.check_same_tokenizer({name: loaded.tokenizer for name, loaded in models.items()})
    heldout = [text.encode() for text in config.heldout.texts("heldout")]
    found: dict[str, HeldOut] = {}
    for name, loaded in models.items():
        tokenizer = loaded.tokenizer
        loader = config.heldout.loader(
            tokenizer, batch_size=config.batch_size, length=config.length, seed=None, split="heldout", epochs=1
        )
        found[name] = bits_per_byte(loaded.model, loaded.params, loader, text_bytes=loader.text_bytes or 0, eos_id=tokenizer.eos_id)
        logger.info("stage %s: %s needs %.3f bits per held-out byte", context.name, name, found[name].bits_per_byte)
    baselines = byte_baselines([text.encode() for text in config.train.texts("train")], heldout)
    entries = [BitsPerByte(name=name, kind="model", value=held.bits_per_byte) for name, held in found.items()]
    entries += [
        BitsPerByte(name="unigram", kind="fitted", value=baselines.unigram),
        BitsPerByte(name="order-2 Markov", kind="fitted", value=baselines.markov2),
        BitsPerByte(name="xz -9e", kind="compressor", value=baselines.xz),
    ]
    savings = []
    for name, over, what in config.comparisons:
        savings.append(Saving(name=name, over=over, what=what, saved=improvement(found[name], found[over])))
    return HeldOutText(text_bytes=sum(map(len, heldout)), documents=len(heldout), entries=tuple(entries), savings=tuple(savings))


def _judge_tasks(
    config: TaskEvaluation | None, models: Mapping[str, LoadedModel], context: StageContext
) -> tuple[tuple[StageAccuracy, ...], tuple[Duel, ...], tuple[Sample, ...]]:
    if config is None:
        return (), (), ()
    source = config.problems.load("heldout")
    rows = [source[index] for index in range(len(source))]
    texts, scores, accuracies = {}, {}, []
    for name, loaded in models.items():
        texts[name] = verifiable.answers(
            loaded.model,
            loaded.params,
            [row["prompt"] for row in rows],
            tokenizer=loaded.tokenizer,
            template=config.template,
            sampling=config.sampling,
            seed=context.seed,
            batch_size=config.batch_size,
        )
        scores[name] = verify.scores(rows, texts[name], config.verify)
        found = verifiable.accuracy(scores[name], [row["task"] for row in rows])
        accuracies.append(StageAccuracy(stage=name, overall=found.overall, tasks=found.tasks))
        logger.info("stage %s: %s answers %.1f%% of %d problems", context.name, name, 100 * found.overall.value, len(rows))
    duels = []
    for name, opponent in config.duels:
        won = verifiable.win_rate(scores[name], scores[opponent])
        duels.append(Duel(stage=name, opponent=opponent, wins=won.wins, ties=won.ties, losses=won.losses, rate=won.rate))
    samples = [
        Sample(
            task=row["task"],
            prompt=row["prompt"],
            answers=tuple(Answer(stage=name, text=texts[name][index], correct=bool(scores[name][index] >= 1)) for name in models),
        )
        for index, row in enumerate(rows[: config.num_samples])
    ]
    return tuple(accuracies), tuple(duels), tuple(samples)


def _judge_rewards(config: RewardEvaluation, inputs: Inputs, context: StageContext) -> RewardAccuracy:
    artifact = inputs["rewards.model"]
    loaded = artifact.load()
    pairs = config.format.read(inputs["rewards.pairs"], "heldout")
    batches = pairs.loader(loaded.tokenizer, batch_size=config.batch_size, length=config.length, seed=None, epochs=1)
    accuracy = preference_accuracy(loaded.model, loaded.params, batches)
    logger.info("stage %s: the reward model ranks %.1f%% of %d pairs right", context.name, 100 * accuracy.value, accuracy.count)
    return RewardAccuracy(stage=_artifact_name(artifact), accuracy=accuracy)


def _models(inputs: Inputs, field: str) -> dict[str, LoadedModel]:
    return {_artifact_name(artifact): artifact.load() for artifact in _tuple_inputs(inputs, field)}


def _tuple_inputs(inputs: Inputs, field: str) -> list[Artifact]:
    """The artifacts of a field that holds a tuple of sources, in order."""
    count = sum(path.rpartition(".")[0] == field for path in inputs)
    return [inputs[f"{field}.{index}"] for index in range(count)]


def _names(sources: tuple[Source, ...], upstream: Upstream, field: str) -> dict[str, str]:
    """Path of each source -> name of the stage that made or will make it."""
    names = {}
    for index, source in enumerate(sources):
        path = f"{field}.{index}"
        made = upstream[path].artifact
        if isinstance(source, Ref):
            names[path] = source.stage
        else:
            assert made is not None, "an External has had its artifact since the graph was resolved"
            names[path] = _artifact_name(made)
    return names


def _artifact_name(artifact: Artifact) -> str:
    return artifact.manifest.stage if artifact.manifest is not None else artifact.path.name


def _figures(artifact: Artifact) -> StageFigures:
    manifest = artifact.manifest
    if manifest is None:
        return StageFigures(name=artifact.path.name, kind="files")
    sources = [record.source.removeprefix("stage ") for record in manifest.inputs.values() if record.source != "data"]
    return StageFigures(
        name=manifest.stage,
        kind=manifest.config["class"].rpartition(".")[2],
        inputs=tuple(dict.fromkeys(sources)),
        parameters=count_parameters(artifact.model_config()).total if artifact.has_model() else None,
        steps=curves.last_step(artifact.path / "metrics.jsonl"),
        tokens=manifest.tokens or None,
        seconds=manifest.seconds(),
        tokens_per_second=manifest.metrics.get("time/tokens_per_second"),
    )


def _config_text(folder: epath.Path) -> str:
    path = folder / "config.txt"
    return path.read_text() if path.exists() else ""


def _headline(found: Summary) -> dict[str, float]:
    metrics = {} if found.text is None else {f"bits_per_byte/{entry.name}": entry.value for entry in found.text.entries}
    metrics |= {f"accuracy/{accuracy.stage}": accuracy.overall.value for accuracy in found.accuracies}
    metrics |= {f"preference_accuracy/{reward.stage}": reward.accuracy.value for reward in found.rewards}
    return metrics | {f"win_rate/{duel.stage}/{duel.opponent}": duel.rate.value for duel in found.duels}
