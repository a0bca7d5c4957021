"""The stage that trains a student on text and a frozen teacher's view of it."""

import dataclasses
from typing import ClassVar, Protocol

from jax.sharding import Mesh

from lmx.core.types import Objective
from lmx.data.batches import lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model
from lmx.objectives import RouterLoss, distillation, top1_distillation
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding.mesh import MeshConfig
from lmx.stages import training as stage_training
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


class Target(Protocol):
    """What the student learns of the teacher."""

    def objective(self, student: Model, teacher: Model, router: RouterLoss) -> Objective:
        """The objective; the teacher's parameters are `frozen["teacher"]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardKL:
    """The teacher's whole distribution: `(1 - alpha) * cross-entropy + alpha * T^2 KL(teacher || student)`.

    Gemma 2 is alpha 1, temperature 1.
    """

    alpha: float = 1.0
    temperature: float = 1.0

    def objective(self, student: Model, teacher: Model, router: RouterLoss) -> Objective:
        """As `Target.objective`."""
        return distillation(student.apply, teacher.apply, alpha=self.alpha, temperature=self.temperature, router=router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Top1Mix:
    """The teacher's best token, weighted against the label (AFM: 0.9)."""

    weight: float = 0.9

    def objective(self, student: Model, teacher: Model, router: RouterLoss) -> Objective:
        """As `Target.objective`."""
        return top1_distillation(student.apply, teacher.apply, weight=self.weight, router=router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Logit distillation; the teacher runs in the same step and may be of another architecture over the same tokenizer.

    Attributes:
      student: the student's architecture.
      teacher: the model it learns from; its tokenizer becomes the student's.
      data: the text; its split "heldout" is used for evaluation.
      training: steps, batches, optimizer.
      target: what is learned of the teacher.
      init: a model to start from, None = random parameters.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    student: DecoderConfig
    teacher: Ref | External = input_field("model")
    data: PackedText
    training: Training
    target: Target = ForwardKL()
    init: Ref | External | None = input_field("model", default=None)
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        del upstream
        return self.student

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["teacher"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        teacher = stage_training.require_language_model(upstream, "teacher")
        stage_training.check_language_model(self.student, "`student`")
        self.training.check(self.student, upstream["teacher"], ramps=True)
        self.training.check(teacher, ramps=True)
        if teacher.vocab_size != self.student.vocab_size:
            raise ValueError(
                f"the teacher has vocab_size={teacher.vocab_size} and the student {self.student.vocab_size}; "
                "distillation needs one vocabulary"
            )
        if self.init is not None:
            stage_training.check_init(upstream, self.student, "`student`")

    def check_mesh(self, mesh: MeshConfig) -> None:
        """As `HasMeshCheck.check_mesh`."""
        self.training.check_mesh(mesh)

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        return self.training.workload(self.student, frozen=(stage_training.require_language_model(upstream, "teacher"),))

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["teacher"].tokenizer()
        return self.training.load(self.data, tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        return self._spec(stage_training.require_language_model(upstream, "teacher"), mesh)

    def _spec(self, teacher_config: DecoderConfig, mesh: Mesh) -> TrainSpec:
        student, teacher = self.training.model(self.student, mesh), self.training.model(teacher_config, mesh)
        objective = self.target.objective(student, teacher, self.router)
        batch = lm_batch_spec(self.training.batch_size, self.training.length)
        return self.training.spec(student, objective, batch, mesh, {"teacher": teacher})

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        spec = self._spec(inputs["teacher"].model_config(), stage_training.stage_mesh(context))
        loader, tokenizer = self.batches(inputs, context)
        if "init" in inputs:
            stage_training.check_same_tokenizer({"teacher": tokenizer, "init": inputs["init"].tokenizer()})
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=loader,
            eval_loader=stage_training.heldout(self.training, self.data, tokenizer),
            frozen=stage_training.frozen_on_mesh(inputs["teacher"], spec, "teacher"),
            init_params=stage_training.starting_from(inputs.get("init"), spec),
            chat=stage_training.chat_of(inputs.get("init")),
        )
