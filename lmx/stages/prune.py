"""The stage that cuts a smaller dense model out of a larger one by scores of its parts."""

import dataclasses
from functools import partial
from typing import ClassVar, Protocol

import jax
from jax.sharding import Mesh

from lmx.core.logging import logger
from lmx.core.types import Params, Precision
from lmx.data.batches import LMBatch, lm_batch_spec
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.model.decoder import build_model
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field
from lmx.pruning.choose import Scores, choose
from lmx.pruning.cut import check_target, cut, sizes
from lmx.pruning.scores import activation_scores, random_scores, weight_scores
from lmx.sharding import place
from lmx.sharding.rules import DEFAULT_RULES, Rules
from lmx.stages import training as stage_training
from lmx.train.execution import build_execution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """The text whose activations tell what a part is worth.

    Attributes:
      data: packed text; its split "train" is read in the order of the stage's seed.
      batch_size: rows of a batch.
      length: T, tokens of a row.
      batches: how many to read.
    """

    data: PackedText
    batch_size: int
    length: int
    batches: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batches < 1:
            raise ValueError(f"batch_size={self.batch_size} and batches={self.batches} must be at least 1")


class Method(Protocol):
    """What tells which parts stay."""

    @property
    def sample(self) -> Sample | None:
        """The text that it reads."""

    @property
    def ranks_layers(self) -> bool:
        """Whether it can tell which layers to drop."""

    def scores(self, params: Params, config: DecoderConfig, artifact: Artifact, mesh: Mesh, rules: Rules, seed: int) -> Scores:
        """What each part is worth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores by weights, by activations, or by the product of both (a part counts by how active and how heavy it is).

    Attributes:
      weights: use the norms of the weights.
      sample: use the activations on this text; None = don't. Dropping layers needs it.

    Reference: activations as in Muralidharan et al. (2024), arXiv:2407.14679; the product after Sun et al. (2023),
      arXiv:2306.11695 (Wanda, Eq. 1), there for single weights.
    """

    weights: bool = True
    sample: Sample | None = None

    def __post_init__(self) -> None:
        if not self.weights and self.sample is None:
            raise ValueError("importance by nothing: set weights=True, or a sample of text, or both")

    @property
    def ranks_layers(self) -> bool:
        """As `Method.ranks_layers`."""
        return self.sample is not None

    def scores(self, params: Params, config: DecoderConfig, artifact: Artifact, mesh: Mesh, rules: Rules, seed: int) -> Scores:
        """As `Method.scores`."""
        if self.sample is None:
            return weight_scores(params, config)
        sample = self.sample
        loader = sample.data.loader(
            artifact.tokenizer(),
            batch_size=sample.batch_size,
            length=sample.length,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        shardings = place.batch_shardings(lm_batch_spec(sample.batch_size, sample.length), mesh, rules)

        def placed(batch: LMBatch) -> LMBatch:
            return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)

        batches = (placed(next(loader)) for _ in range(sample.batches))
        found = activation_scores(params, config, batches, execution=build_execution(mesh, rules, precision=Precision()))
        return weight_scores(params, config).times(found) if self.weights else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random:
    """Any parts at all: the baseline for every other method."""

    sample: ClassVar[Sample | None] = None
    ranks_layers: ClassVar[bool] = True

    def scores(self, params: Params, config: DecoderConfig, artifact: Artifact, mesh: Mesh, rules: Rules, seed: int) -> Scores:
        """As `Method.scores`."""
        del params, artifact, mesh, rules
        return random_scores(config, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """A smaller dense model: fewer FFN units, heads, channels or layers, whichever the target has fewer of.

    Attributes:
      source: the model to cut.
      target: the source's architecture with smaller sizes.
      method: what tells which parts stay.
      rules: logical axis -> mesh axes.
    """

    produces: ClassVar[str] = "model"
    source: Ref | External = input_field("model")
    target: DecoderConfig
    method: Method = Importance()
    rules: Rules = DEFAULT_RULES

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        del upstream
        return self.target

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["source"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        source = stage_training.require_language_model(upstream, "source")
        check_target(source, self.target)
        if self.target == source:
            raise ValueError("the target is the source itself: there is nothing to prune")
        if self.target.num_layers < source.num_layers and not self.method.ranks_layers:
            raise ValueError(
                f"{source.num_layers - self.target.num_layers} layers must go, but weights don't tell which; "
                "give the method a sample"
            )
        if self.method.sample is not None:
            stage_training.check_length(self.method.sample.length, source, "method.sample.length")

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        artifact, mesh = inputs["source"], stage_training.stage_mesh(context)
        config = artifact.model_config()
        params = stage_training.params_on_mesh(artifact, build_model(config), mesh, self.rules)
        keep = choose(self.method.scores(params, config, artifact, mesh, self.rules, context.seed), config, self.target)
        child = build_model(self.target)
        abstract = jax.eval_shape(partial(cut, source=config, keep=keep), params)
        shardings = place.shardings(child.axes, abstract, mesh, self.rules)
        pruned = jax.jit(partial(cut, source=config, keep=keep), out_shardings=shardings)(params)
        artifacts.write_model(
            context.workdir, config=self.target, params=pruned, tokenizer=artifact.tokenizer(), chat=artifact.chat()
        )
        changed = [(name, old, new) for name, old, new in sizes(config, self.target) if old != new]
        logger.info("stage %s: %s", context.name, ", ".join(f"{name} {old} -> {new}" for name, old, new in changed))
        before, after = build_model(config).num_params(), child.num_params()
        return StageResult(metrics={"parameters": after, "parameters_before": before, "kept": after / before})
