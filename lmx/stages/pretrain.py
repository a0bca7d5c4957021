"""The stage that trains a language model on text."""

import dataclasses
from functools import partial
from typing import ClassVar

from jax.sharding import Mesh

from lmx.data.batches import lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.model.context import same_but_context
from lmx.objectives import RouterLoss, language_model
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding.mesh import MeshConfig
from lmx.stages import training as stage_training
from lmx.stages.training import KeepOptimizer, Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Next-token prediction on packed text, from scratch or from another model of the same architecture.

    A later stage of a run continues with the parameters of the one before (`init`), on another mixture, shape or learning rate, and
    with another RoPE base if `new_context` says so.

    Attributes:
      model: the architecture.
      tokenizer: an artifact with a tokenizer.
      data: the text; its split "heldout" is used for evaluation.
      training: steps, batches, optimizer.
      init: a model to start from, None = random parameters.
      new_context: the model of `init` may differ from `model` in RoPE and longest sequence, and in nothing else.
      keep_optimizer: what to take over of the optimizer's state of the stage that left `init`, which used the same kind: "all",
        "mean_squares" (momentum starts at 0), None = nothing. The schedule starts anew; `lmx.optim.Part` continues it.
      z_loss: coefficient of the squared log-normalizer.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    model: DecoderConfig
    tokenizer: Ref | External = input_field("tokenizer", "model")
    data: PackedText
    training: Training
    init: Ref | External | None = input_field("model", default=None)
    new_context: bool = False
    keep_optimizer: KeepOptimizer = None
    z_loss: float = 0.0
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        del upstream
        return self.model

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["tokenizer"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        stage_training.check_language_model(self.model, "`model`")
        self.training.check(self.model, upstream["tokenizer"], ramps=True)
        if self.init is not None:
            self._check_init(stage_training.require_language_model(upstream, "init"))
        elif self.new_context or self.keep_optimizer:
            raise ValueError("new_context and keep_optimizer say how to go on from `init`, which is None; name a stage there")
        if self.keep_optimizer and self.training.averages_online:
            raise ValueError("keep_optimizer and an online training.average exclude each other; average kept Checkpoints instead")

    def _check_init(self, init: DecoderConfig) -> None:
        if init == self.model:
            return
        if not same_but_context(init, self.model):
            raise ValueError("the model of `init` has another architecture than `model`; give both the same config")
        if not self.new_context:
            raise ValueError(
                "the model of `init` differs from `model` in RoPE or max_length; set new_context=True if that is meant, or give "
                "both the same config"
            )

    def check_mesh(self, mesh: MeshConfig) -> None:
        """As `HasMeshCheck.check_mesh`."""
        self.training.check_mesh(mesh)

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        del upstream
        return self.training.workload(self.model)

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["tokenizer"].tokenizer()
        return self.training.load(self.data, tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        del upstream
        return self._spec(mesh)

    def _spec(self, mesh: Mesh) -> TrainSpec:
        model = self.training.model(self.model, mesh)
        objective = language_model(model.apply, z_loss=self.z_loss, router=self.router)
        return self.training.spec(model, objective, lm_batch_spec(self.training.batch_size, self.training.length), mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        spec, keep = self._spec(stage_training.stage_mesh(context)), self.keep_optimizer
        loader, tokenizer = self.batches(inputs, context)
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=loader,
            eval_loader=stage_training.heldout(self.training, self.data, tokenizer),
            init_params=stage_training.starting_from(inputs.get("init"), spec),
            chat=stage_training.chat_of(inputs.get("init")),
            init_opt_state=keep and partial(stage_training.optimizer_state_of, inputs["init"], spec, keep),
        )
