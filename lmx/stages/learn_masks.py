"""The stage that learns which FFN units a model can do without, and leaves the model without them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmx.core.types import Array, Metrics, Objective, Params, Terms, Weighted
from lmx.data.batches import lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model
from lmx.objectives import RouterLoss, language_model
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.pruning import learned
from lmx.pruning.learned import MaskOptimizer, MaskSchedule
from lmx.sharding.mesh import MeshConfig
from lmx.stages import training as stage_training
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnMasks:
    """Pruning by learned masks: the parent trains on with a soft top-k mask on every FFN, then only the units kept remain.

    The loss is the language model's alone: each mask sums to the child's width by construction, so no multiplier is needed.

    Attributes:
      source: the parent, fully trained.
      target: the parent's architecture with smaller `ffn_dim`.
      data: the text; its split "heldout" is used for evaluation, under the mask of that moment.
      training: steps, batches, and the optimizer of the parent's parameters.
      schedule: of the masks.
      mask_rate: learning rate of the scores as a multiple of the optimizer's.
      freeze_weights: train the scores alone.
      z_loss: coefficient of the squared log-normalizer.
      router: auxiliary losses of MoE routers, where only some blocks are dense.

    Reference: Gunter et al. (2024), arXiv:2407.21075 (AFM on-device: 188B tokens of the core mixture); soft top-k after Lei et al.
      (2023), arXiv:2304.04947, in the manner of Xia et al. (2023), arXiv:2310.06694 (Sheared LLaMA).
    """

    produces: ClassVar[str] = "model"
    source: Ref | External = input_field("model")
    target: DecoderConfig
    data: PackedText
    training: Training
    schedule: MaskSchedule = MaskSchedule()
    mask_rate: float = 10.0
    freeze_weights: bool = False
    z_loss: float = 0.0
    router: RouterLoss = RouterLoss()

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
        self.training.check(source, upstream["source"], ramps=True)
        if self.training.average is not None:
            raise ValueError("training.average averages parameters, but masks of different moments don't add up; leave it None")
        learned.pruned_widths(source, self.target)

    def check_mesh(self, mesh: MeshConfig) -> None:
        """As `HasMeshCheck.check_mesh`."""
        self.training.check_mesh(mesh)

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        return self.training.workload(stage_training.require_language_model(upstream, "source"))

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["source"].tokenizer()
        return self.training.load(self.data, tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        return self._spec(stage_training.require_language_model(upstream, "source"), mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        artifact = inputs["source"]
        source = artifact.model_config()
        spec = self._spec(source, stage_training.stage_mesh(context))
        loader, tokenizer = self.batches(inputs, context)
        result = stage_training.train(
            spec,
            self.training,
            context,
            loader=loader,
            eval_loader=stage_training.heldout(self.training, self.data, tokenizer),
            init_params=lambda: self._start(artifact, source, spec, context.seed),
        )
        child = learned.harden(result.params, source, self.target, self.schedule)
        return stage_training.leave_model(
            result, context, config=self.target, params=child, tokenizer=tokenizer, chat=artifact.chat()
        )

    def _spec(self, source: DecoderConfig, mesh: Mesh) -> TrainSpec:
        training, steps = self.training, self.training.loop.steps
        model = learned.masked_model(
            training.model(source, mesh), self.target, self.schedule, steps=steps, frozen=self.freeze_weights
        )
        optimizer = MaskOptimizer(model=training.optimizer, multiplier=self.mask_rate, frozen=self.freeze_weights)
        masked = dataclasses.replace(training, optimizer=optimizer)
        return masked.spec(model, self._objective(model, steps), lm_batch_spec(training.batch_size, training.length), mesh)

    def _objective(self, model: Model, steps: int) -> Objective:
        """The language model's, with "mask_eps" and "mask_softness" among the metrics."""
        widths = learned.pruned_widths(model.config, self.target)
        objective = language_model(model.apply, z_loss=self.z_loss, router=self.router)

        def with_masks(params: Params, frozen: Mapping[str, Params], batch: Any, key: Array) -> tuple[Terms, Metrics]:
            terms, metrics = objective(params, frozen, batch, key)
            masks, one = params[learned.MASKS], jnp.ones((), jnp.float32)
            masks = jax.lax.stop_gradient(masks)
            found = {
                "mask_eps": self.schedule.eps(masks[learned.CLOCK] / steps),
                "mask_softness": learned.softness(masks, widths, self.schedule, steps),
            }
            return terms, {**metrics, **{name: Weighted(value, one) for name, value in found.items()}}

        return with_masks

    def _start(self, artifact: Artifact, source: DecoderConfig, spec: TrainSpec, seed: int) -> Params:
        own = self.training.model(source, spec.mesh)
        params = stage_training.params_on_mesh(artifact, own, spec.mesh, spec.rules)
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return learned.with_masks(params, key, learned.pruned_widths(source, self.target), source.num_repeats, self.schedule)
