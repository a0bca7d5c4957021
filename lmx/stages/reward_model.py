"""The stage that turns a language model into a reward model."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
from jax.sharding import Mesh

from lmx.core.types import Array, Params
from lmx.data.batches import preference_batch_spec
from lmx.data.loader import Loader
from lmx.losses.reward import bradley_terry_loss
from lmx.model.config import DecoderConfig, ScalarHead
from lmx.objectives import RouterLoss, reward
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding import place
from lmx.stages import training as stage_training
from lmx.stages.pairs import PairFormat
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A language model whose head is replaced by a row that scores the last token of a response.

    Attributes:
      source: the language model to start from.
      pairs: preference pairs, as `SamplePairs` leaves them; the held-out ones are used for evaluation.
      training: steps, batches of pairs, optimizer.
      loss: pure function of `chosen, rejected` ([B] float32 each, keywords) to [B].
      format: how pairs become batches.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "reward_model"
    source: Ref | External = input_field("model")
    pairs: Ref | External = input_field("dataset")
    training: Training
    loss: Callable[..., Array] = bradley_terry_loss
    format: PairFormat = PairFormat()
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        return _with_scalar_head(stage_training.require_language_model(upstream, "source"))

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        self.training.check(self.architecture(upstream))

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        return self.training.workload(self.architecture(upstream), rows=2)

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["source"].tokenizer()
        return self.training.load(self.format.read(inputs["pairs"], "train"), tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        return self._spec(self.architecture(upstream), mesh)

    def _spec(self, config: DecoderConfig, mesh: Mesh) -> TrainSpec:
        model = self.training.model(config, mesh)
        objective = reward(model.apply, loss=self.loss, router=self.router)
        return self.training.spec(model, objective, preference_batch_spec(self.training.batch_size, self.training.length), mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        spec = self._spec(_with_scalar_head(inputs["source"].model_config()), stage_training.stage_mesh(context))
        loader, tokenizer = self.batches(inputs, context)
        heldout = None
        if self.training.loop.eval_every is not None:
            heldout = self.training.load(self.format.read(inputs["pairs"], "heldout"), tokenizer, seed=None, epochs=1)
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=loader,
            eval_loader=heldout,
            init_params=lambda: _with_fresh_head(inputs["source"], spec, jax.random.key(context.seed)),
            chat=inputs["source"].chat(),
        )


def _with_scalar_head(config: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(config, head=ScalarHead())


def _with_fresh_head(source: Artifact, spec: TrainSpec, key: Array) -> Params:
    """The language model's parameters, with the head that a fresh reward model would have."""
    language_model = source.stored_model()
    abstract = language_model.abstract_params()
    params = source.load_params(abstract, place.shardings(language_model.axes, abstract, spec.mesh, spec.rules))
    head = jax.jit(lambda key: spec.model.init(key)["head"])(key)
    return {**params, "head": head}
