"""The stage that measures what models make of their context: loss by position, and needles found, at several lengths."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lmx.core import storage
from lmx.core.logging import logger
from lmx.data.text import PackedText
from lmx.eval.needle import NeedleTest, find_needles
from lmx.eval.positions import loss_by_position
from lmx.pipeline.artifact import Artifact, LoadedModel
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field
from lmx.stages import training as stage_training

FIGURES = "context.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextReport:
    """Measures models at each length that they take, and writes `context.json`, also into the experiment's own folder.

    Attributes:
      models: language models that share a tokenizer.
      data: its split "heldout" gives the loss by position.
      lengths: of the rows; a model is measured at those up to its `max_length`.
      needle: the texts whose facts are asked for; None = none.
      parts: buckets of positions at each length: the first half, or quarter, eighth ... of the row and then doubling.
      batch_tokens: tokens at once, at least one row.
      batches: held-out batches at each length, at most.
    """

    produces: ClassVar[str] = "report"
    models: tuple[Ref | External, ...] = input_field("model")
    data: PackedText
    lengths: tuple[int, ...]
    needle: NeedleTest | None = None
    parts: int = 4
    batch_tokens: int = 2_048
    batches: int = 8

    def __post_init__(self) -> None:
        if not self.models or not self.lengths:
            raise ValueError("models and lengths must each name at least one")
        if self.parts < 1 or min(self.lengths) < 2**self.parts:
            raise ValueError(f"parts={self.parts} buckets of doubling size need rows of at least {2**self.parts} tokens")
        if self.batch_tokens < 1 or self.batches < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens} and batches={self.batches} must be at least 1")

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        for index in range(len(self.models)):
            model = stage_training.require_language_model(upstream, f"models.{index}")
            stage_training.check_length(min(self.lengths), model, "lengths")

    def edges(self, length: int) -> tuple[int, ...]:
        """Positions that divide rows of a length: (0, 32, 64, 128, 256) in four parts of 256."""
        return (0, *(length >> power for power in reversed(range(self.parts))))

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; an interrupted run starts over."""
        artifacts = {_name(artifact): artifact for artifact in (inputs[f"models.{i}"] for i in range(len(self.models)))}
        loaded = {name: artifact.load() for name, artifact in artifacts.items()}
        stage_training.check_same_tokenizer({name: model.tokenizer for name, model in loaded.items()})
        found: dict[str, list[dict[str, Any]]] = {}
        for name, model in loaded.items():
            lengths = [length for length in self.lengths if length <= model.model.config.max_length]
            found[name] = [self._measure(model, length) for length in lengths]
            for figures in found[name]:
                losses = ", ".join("-" if value is None else f"{value:.3f}" for value in figures["loss"])
                needles = "" if figures["needle"] is None else f", {100 * figures['needle']:.0f}% of the needles"
                logger.info("stage %s: %s at %d tokens: loss %s%s", context.name, name, figures["length"], losses, needles)
        for folder in (context.workdir, context.experiment_dir):
            storage.write_json(folder / FIGURES, found)
        return StageResult(metrics=_headline(found))

    def _measure(self, loaded: LoadedModel, length: int) -> dict[str, Any]:
        """The figures of a model at one length; None where no label lies in a bucket."""
        size = max(1, self.batch_tokens // length)
        loader = self.data.loader(loaded.tokenizer, batch_size=size, length=length, seed=None, split="heldout", epochs=1)
        batches = (next(loader) for _ in range(min(self.batches, loader.num_batches or self.batches)))
        positions = loss_by_position(loaded.model, loaded.params, batches, edges=self.edges(length))
        needle = None
        if self.needle is not None:
            needle = find_needles(self.needle, loaded.model, loaded.params, loaded.tokenizer, length=length).accuracy
        losses = [None if np.isnan(value) else float(value) for value in positions.mean]
        return {"length": length, "edges": list(positions.edges), "loss": losses, "overall": positions.overall, "needle": needle}


def _name(artifact: Artifact) -> str:
    return artifact.manifest.stage if artifact.manifest is not None else artifact.path.name


def _headline(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Figures for the manifest: the loss at each length, on its last positions where they have labels, and the needles."""
    metrics: dict[str, float] = {}
    for name, rows in found.items():
        for row in rows:
            place = f"{name}/{row['length']}"
            metrics[f"loss/{place}"] = row["overall"]
            if row["loss"][-1] is not None:
                metrics[f"last_half_loss/{place}"] = row["loss"][-1]
            if row["needle"] is not None:
                metrics[f"needle/{place}"] = row["needle"]
    return metrics
