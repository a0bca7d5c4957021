"""The stage that teaches a language model to answer: supervised fine-tuning."""

import dataclasses
from typing import ClassVar

from jax.sharding import Mesh

from lmx.data.batches import lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.supervised import Instructions
from lmx.model.config import DecoderConfig
from lmx.objectives import RouterLoss, language_model
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.stages import training as stage_training
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT:
    """Next-token prediction on responses; prompts are read, never learned.

    Attributes:
      source: the language model to start from.
      data: prompts with responses; the split "heldout" is used for evaluation.
      training: steps, batches, optimizer.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    source: Ref | External = input_field("model")
    data: Instructions
    training: Training
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        return stage_training.require_language_model(upstream, "source")

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["source"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        self.training.check(self.architecture(upstream))

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        return self.training.workload(self.architecture(upstream))

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["source"].tokenizer()
        return self.training.load(self.data, tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        return self._spec(self.architecture(upstream), mesh)

    def _spec(self, config: DecoderConfig, mesh: Mesh) -> TrainSpec:
        model = self.training.model(config, mesh)
        objective = language_model(model.apply, router=self.router)
        return self.training.spec(model, objective, lm_batch_spec(self.training.batch_size, self.training.length), mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        spec = self._spec(inputs["source"].model_config(), stage_training.stage_mesh(context))
        loader, tokenizer = self.batches(inputs, context)
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=loader,
            eval_loader=stage_training.heldout(self.training, self.data, tokenizer),
            init_params=stage_training.starting_from(inputs["source"], spec),
            chat=inputs["source"].chat(),
        )
