"""The stage that trains a student on text and on what a teacher's store says of it."""

import dataclasses
from functools import partial
from typing import ClassVar, Protocol

import jax
from jax.sharding import Mesh

from lmx.core.types import Objective
from lmx.data.batches import teacher_batch_spec
from lmx.data.teacher_form import Samples, TeacherForm, TopK
from lmx.data.teacher_loader import TeacherLoader
from lmx.data.teacher_store import StoreHeader, StoreReader, read_header
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model
from lmx.objectives import RouterLoss, stored, stored_distillation
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding.mesh import MeshConfig
from lmx.stages import training as stage_training
from lmx.stages.teacher_logits import TeacherLogits, data_fingerprint
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


class StoredTarget(Protocol):
    """What the student learns of the store.

    Attributes:
      needs: the form of store that holds it, `TopK` or `Samples`.
    """

    needs: ClassVar[type]

    def objective(self, student: Model, form: TeacherForm, router: RouterLoss) -> Objective:
        """The objective on `TeacherBatch`; the form is one that it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TailBucket:
    """A top k and one bucket for all other tokens: a lower bound on the whole divergence, and exact when k is the vocabulary."""

    needs: ClassVar[type] = TopK
    alpha: float = 1.0

    def objective(self, student: Model, form: TeacherForm, router: RouterLoss) -> Objective:
        """As `StoredTarget.objective`."""
        return _at_the_stores_temperature(stored.tail_bucket, self.alpha, student, form, router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renormalised:
    """A top k scaled up to sum to 1: biased, see `losses.stored_teacher.renormalised_kl`."""

    needs: ClassVar[type] = TopK
    alpha: float = 1.0

    def objective(self, student: Model, form: TeacherForm, router: RouterLoss) -> Objective:
        """As `StoredTarget.objective`."""
        return _at_the_stores_temperature(stored.renormalised, self.alpha, student, form, router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Tokens drawn from the teacher: an unbiased estimate of the cross-entropy against its whole distribution."""

    needs: ClassVar[type] = Samples
    alpha: float = 1.0

    def objective(self, student: Model, form: TeacherForm, router: RouterLoss) -> Objective:
        """As `StoredTarget.objective`."""
        return _at_the_stores_temperature(stored.drawn, self.alpha, student, form, router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTop1Mix:
    """The teacher's best token, weighted against the label (AFM: 0.9); k = 1 is enough."""

    needs: ClassVar[type] = TopK
    weight: float = 0.9

    def objective(self, student: Model, form: TeacherForm, router: RouterLoss) -> Objective:
        """As `StoredTarget.objective`."""
        del form
        return stored_distillation(student.apply, loss=stored.first_choice, alpha=self.weight, router=router)


def _at_the_stores_temperature(
    loss: stored.StoredLoss, alpha: float, student: Model, form: TeacherForm, router: RouterLoss
) -> Objective:
    return stored_distillation(student.apply, loss=partial(loss, temperature=form.temperature), alpha=alpha, router=router)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillStored:
    """Distillation without the teacher: rows of text joined with its stored view of them.

    Attributes:
      student: the student's architecture.
      logits: the store; its tokenizer becomes the student's, and its seed orders the rows.
      data: the text that the store was made of.
      training: steps, batches, optimizer; the store must hold at least steps x batch_size rows.
      target: what is learned of the store.
      teacher: the model that the store must come from; None = any.
      init: a model to start from, None = random parameters.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    student: DecoderConfig
    logits: Ref | External = input_field("teacher_logits")
    data: PackedText
    training: Training
    target: StoredTarget = TailBucket()
    teacher: Ref | External | None = input_field("model", default=None)
    init: Ref | External | None = input_field("model", default=None)
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        del upstream
        return self.student

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["logits"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`; looks into the store itself when it is there already."""
        stage_training.check_language_model(self.student, "`student`")
        self.training.check(self.student, upstream["logits"])
        if self.init is not None:
            stage_training.check_init(upstream, self.student, "`student`")
        source = upstream["logits"]
        if source.artifact is not None:
            self._check_store(read_header(source.artifact.path))
        elif isinstance(source.stage, TeacherLogits):
            self._check_stage(source.stage)

    def check_mesh(self, mesh: MeshConfig) -> None:
        """As `HasMeshCheck.check_mesh`."""
        self.training.check_mesh(mesh)

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        del upstream
        return self.training.workload(self.student)

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[TeacherLoader, Tokenizer]:
        """As `HasBatches.batches`."""
        del context
        artifact = inputs["logits"]
        tokenizer = artifact.tokenizer()
        return self._loader(StoreReader(artifact.path), tokenizer), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        source = upstream["logits"]
        if source.artifact is not None:
            return self._spec(read_header(source.artifact.path).form, mesh)
        assert isinstance(source.stage, TeacherLogits)
        return self._spec(source.stage.form, mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; the store is looked through before training begins."""
        artifact = inputs["logits"]
        store, tokenizer = StoreReader(artifact.path), artifact.tokenizer()
        self._check_inputs(store.header, tokenizer, inputs)
        heldout = None
        if self.training.loop.eval_every is not None:
            heldout = self._loader(StoreReader(artifact.path, "heldout"), tokenizer)
        spec = self._spec(store.header.form, stage_training.stage_mesh(context))
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=self._loader(store, tokenizer),  # type: ignore[arg-type]  # what the loop reads of a loader, it has
            eval_loader=heldout,  # type: ignore[arg-type]
            init_params=stage_training.starting_from(inputs.get("init"), spec),
            chat=stage_training.chat_of(inputs.get("init")),
        )

    def _spec(self, form: TeacherForm, mesh: Mesh) -> TrainSpec:
        student = self.training.model(self.student, mesh)
        batch = teacher_batch_spec(self.training.batch_size, self.training.length, form.k)
        return self.training.spec(student, self.target.objective(student, form, self.router), batch, mesh)

    def _loader(self, store: StoreReader, tokenizer: Tokenizer) -> TeacherLoader:
        trains = store.split == "train"
        seed, epochs = (store.header.seed, None) if trains else (None, 1)
        return TeacherLoader(
            self.training.load(self.data, tokenizer, seed=seed, split=store.split, epochs=epochs),
            store,
            batch_size=self.training.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _check_inputs(self, header: StoreHeader, tokenizer: Tokenizer, inputs: Inputs) -> None:
        """Raises ValueError when the store is of another teacher, tokenizer or text than this training."""
        self._check_store(header)
        if header.tokenizer != tokenizer.fingerprint:
            raise ValueError("the store of teacher logits was made with another tokenizer than the one that lies beside it")
        if "init" in inputs:
            stage_training.check_same_tokenizer({"logits": tokenizer, "init": inputs["init"].tokenizer()})
        if "teacher" in inputs and inputs["teacher"].fingerprint() != header.teacher:
            raise ValueError(
                "the store of teacher logits comes from another teacher than the model named in `teacher`; store that one's logits"
            )

    def _check_store(self, header: StoreHeader) -> None:
        """Raises ValueError when the store doesn't hold what this training reads."""
        training = self.training
        if header.vocab_size != self.student.vocab_size:
            raise ValueError(
                f"the teacher of the store has vocab_size={header.vocab_size} and the student {self.student.vocab_size}; "
                "distillation needs one vocabulary"
            )
        if header.length != training.length:
            raise ValueError(
                f"the store has rows of {header.length} tokens, but training.length={training.length}; make them equal"
            )
        if header.data != data_fingerprint(self.data):
            raise ValueError(
                "the store of teacher logits was made of other data than `data`: of another config, or files changed since"
            )
        self._check_form(header.form)
        self._check_rows(header.rows["train"], "heldout" in header.rows)

    def _check_stage(self, stage: TeacherLogits) -> None:
        """The same of a store that is still to be written."""
        training = self.training
        if stage.length != training.length:
            raise ValueError(f"the store has rows of {stage.length} tokens, but training.length={training.length}; make them equal")
        if dataclasses.replace(stage.data, token_cache=None) != dataclasses.replace(self.data, token_cache=None):
            raise ValueError("the store of teacher logits will be made of other data than `data`; give both stages the same")
        self._check_rows(stage.rows, stage.heldout)
        self._check_form(stage.form)

    def _check_form(self, form: TeacherForm) -> None:
        if not isinstance(form, self.target.needs):
            raise ValueError(f"target {type(self.target).__name__} needs a store of {self.target.needs.__name__}, but gets {form}")

    def _check_rows(self, rows: int, heldout: bool) -> None:
        training = self.training
        needed = training.loop.steps * training.batch_size
        if rows < needed:
            raise ValueError(
                f"{training.loop.steps} steps of {training.batch_size} rows read {needed} rows, but the store has {rows}; store "
                "more or train for fewer steps"
            )
        if training.loop.eval_every is not None and not heldout:
            raise ValueError(
                f"loop.eval_every={training.loop.eval_every} needs the split 'heldout' in the store; set "
                "TeacherLogits.heldout=True or eval_every=None"
            )
