"""What every training stage shares: its numbers, its checks, and the way from a TrainSpec to an artifact."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from lmx import merging
from lmx.checkpoint.checkpointer import Checkpointer
from lmx.checkpoint.record import CheckpointError
from lmx.core.types import Objective, Params, Precision, PyTree
from lmx.data.loader import Loader
from lmx.data.ramp import Phase, Ramp
from lmx.merging import Average
from lmx.model.accounting import flops_per_token
from lmx.model.config import DecoderConfig, ScalarHead
from lmx.model.decoder import Model, build_model
from lmx.optim import Layout, Optimizer, handed_on
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import StageContext, StageResult, Upstream, UpstreamInfo, Workload
from lmx.sampling.generate import Sampling
from lmx.sharding import place
from lmx.sharding.mesh import AXES, MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES, Rules
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.train import loop
from lmx.train.averages import Checkpoints
from lmx.train.config import LoopConfig, RunContext
from lmx.train.execution import build_execution
from lmx.train.loop import LoopResult
from lmx.train.spec import TrainSpec
from lmx.train.state import abstract_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage trains.

    Schedules count optimizer steps, also under a ramp, where steps hold more and more tokens. Steps that are skipped don't count.

    Attributes:
      loop: steps, logging, evaluation, checkpoints.
      optimizer: with its learning-rate schedule over `loop.steps`.
      batch_size: rows (pairs, for preferences) of the global batch; with a ramp, up to its first mark.
      length: T, tokens of a row; likewise.
      microbatches: gradient accumulation; likewise.
      ramp: later shapes of the batches, each from a token mark on. Tokens are counted from the start of the stage, padding
        included. Held-out batches have the last phase's shape.
      average: which parameters the stage leaves instead of the last: an average along the run (`Uniform`, `EMA`) or of kept
        checkpoints (`Checkpoints`).
      clip_norm: global-norm clip of the gradient, None = off.
      drop_norm: gradient norm from which on a step is skipped, None = off.
      precision: dtypes of parameters and activations.
      remat: None, "full" or "dots", see `lmx.model.remat`.
      rules: logical axis -> mesh axes.
    """

    loop: LoopConfig
    optimizer: Optimizer
    batch_size: int
    length: int
    microbatches: int = 1
    ramp: tuple[Phase, ...] = ()
    average: Average | Checkpoints | None = None
    clip_norm: float | None = 1.0
    drop_norm: float | None = None
    precision: Precision = Precision()
    remat: str | None = None
    rules: Rules = DEFAULT_RULES

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.length < 2:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1, length={self.length} at least 2")
        if self.microbatches < 1 or self.batch_size % self.microbatches:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of microbatches={self.microbatches}")
        if self.average is not None and self.loop.return_best:
            raise ValueError("training.average and loop.return_best both say which parameters the stage leaves; set one of them")

    @property
    def shapes(self) -> Ramp:
        """The shapes of the batches along the run.

        Raises:
          ValueError: the ramp goes backwards, or a mark falls inside a batch.
        """
        first = Phase(from_tokens=0, batch_size=self.batch_size, length=self.length, microbatches=self.microbatches)
        return Ramp((first, *self.ramp))

    @property
    def averages_online(self) -> bool:
        """Whether the optimizer's state holds an average."""
        return self.average is not None and not isinstance(self.average, Checkpoints)

    def check(self, model: DecoderConfig, tokenizer: UpstreamInfo | None = None, *, ramps: bool = False) -> None:
        """Raises ValueError when something doesn't fit.

        Args:
          model: the rows must not be longer than it takes.
          tokenizer: it must not have more pieces than the model's table has rows; None = not looked at.
          ramps: whether the stage's data can follow a ramp.
        """
        if self.ramp and not ramps:
            raise ValueError("training.ramp changes the shape of packed text, which this stage doesn't read; leave it empty")
        check_length(self.shapes.longest, model, "training.length")
        self.shapes.check(self.loop.steps)
        self.optimizer.learning_rate(self.loop.steps)  # a warm-up longer than the run is refused here
        if isinstance(self.average, Checkpoints):
            self.average.steps(self.loop)
        elif self.average is not None:
            self.average.check(self.loop.steps)
        if tokenizer is not None and tokenizer.vocab_size is not None:
            check_vocabulary(tokenizer.vocab_size, model)

    def model(self, config: DecoderConfig, mesh: Mesh) -> Model:
        """The model, built to run on the mesh."""
        return build_model(config, build_execution(mesh, self.rules, precision=self.precision, remat=self.remat))

    def spec(
        self, model: Model, objective: Objective, batch_spec: PyTree, mesh: Mesh, frozen_models: Mapping[str, Model] | None = None
    ) -> TrainSpec:
        """All that the step is made of; with a ramp, in its first phase."""
        steps = self.loop.steps
        optimizer = self.optimizer.build(steps, Layout(model.axes, model.config.model_dim))
        if self.average is not None and not isinstance(self.average, Checkpoints):
            optimizer = merging.averaging(optimizer, self.average, steps)
        return TrainSpec(
            model=model,
            objective=objective,
            optimizer=optimizer,
            batch_spec=batch_spec,
            mesh=mesh,
            rules=self.rules,
            precision=self.precision,
            frozen_models=frozen_models or {},
            microbatches=self.microbatches,
            clip_norm=self.clip_norm,
            drop_norm=self.drop_norm,
        )

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Raises ValueError when a mesh can't hold a batch; an axis of -1 is not known yet and taken as 1."""
        sizes = {axis: max(1, getattr(mesh, axis)) for axis in AXES}
        shards = math.prod(sizes[axis] for axis in self.rules.mesh_axes("batch"))
        for phase in self.shapes.phases:
            if phase.batch_size % (phase.microbatches * shards):
                raise ValueError(
                    f"a batch of {phase.batch_size} rows in {phase.microbatches} microbatches cannot be split over {shards} "
                    f"devices along mesh axes {self.rules.mesh_axes('batch')}; make it a multiple of {phase.microbatches * shards}"
                )

    def workload(self, model: DecoderConfig, *, frozen: tuple[DecoderConfig, ...] = (), rows: int = 1) -> Workload:
        """Steps, tokens and FLOPs of the stage; `rows` is the number of sequences in an element of the batch (2 for pairs)."""
        parts = [(phase.length, steps * phase.batch_tokens * rows) for phase, steps in self.shapes.parts(self.loop.steps)]
        flops = sum(tokens * self.flops_per_token(model, frozen, length=length) for length, tokens in parts)
        return Workload(steps=self.loop.steps, tokens=sum(tokens for _, tokens in parts), flops=flops)

    def flops_per_token(self, model: DecoderConfig, frozen: tuple[DecoderConfig, ...] = (), *, length: int | None = None) -> float:
        """Of a step on rows of a length (None = the stage's first): forward and backward of the model, forward of the frozen."""
        length = self.length if length is None else length
        own = flops_per_token(model, length, training=True)
        return own + sum(flops_per_token(config, length, training=False) for config in frozen)

    def load(self, data: Any, tokenizer: Tokenizer, *, seed: int | None, split: str = "train", epochs: int | None = None) -> Loader:
        """This process's batches of a data config (`PackedText`, `Instructions` ...); a finite pass is in the last shape."""
        last = self.shapes.phases[-1]
        return data.loader(
            tokenizer,
            batch_size=last.batch_size,
            length=last.length,
            seed=seed,
            split=split,
            epochs=epochs,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **({"ramp": self.shapes} if self.ramp and epochs is None else {}),
        )


def check_length(length: int, model: DecoderConfig, field: str) -> None:
    """Raises ValueError when rows of a length that a field sets are longer than the model takes."""
    if length > model.max_length:
        raise ValueError(
            f"{field}={length} exceeds the model's max_length={model.max_length}; shorten the rows or raise max_length"
        )


def check_room(sampling: Sampling, model: DecoderConfig, field: str) -> None:
    """Raises ValueError when answers as long as a field allows leave the model no room for a prompt."""
    if sampling.max_new_tokens >= model.max_length:
        raise ValueError(
            f"{field}.max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt "
            f"in the model's max_length={model.max_length}"
        )


def check_vocabulary(pieces: int, model: DecoderConfig) -> None:
    """Raises ValueError when a tokenizer has more pieces than the model's table has rows."""
    if pieces > model.vocab_size:
        raise ValueError(
            f"the tokenizer has {pieces} pieces but the model's vocab_size is {model.vocab_size}; "
            "raise vocab_size or train a smaller tokenizer"
        )


def require_architecture(upstream: Upstream, name: str) -> DecoderConfig:
    """The architecture of an input that must hold a model."""
    architecture = upstream[name].architecture
    if architecture is None:
        raise ValueError(f"the input {name!r} is of the kind {upstream[name].kind!r} and holds no model")
    return architecture


def require_language_model(upstream: Upstream, name: str) -> DecoderConfig:
    """The architecture of an input that must hold a language model, not a reward model."""
    architecture = require_architecture(upstream, name)
    check_language_model(architecture, f"the input {name!r}")
    return architecture


def check_language_model(model: DecoderConfig, what: str) -> None:
    """Raises ValueError for a model that gives rewards instead of predicting tokens."""
    if isinstance(model.head, ScalarHead):
        raise ValueError(f"{what} has a scalar head; a language model is needed")


def check_init(upstream: Upstream, model: DecoderConfig, what: str) -> None:
    """Raises ValueError when the input "init" is no language model of exactly the architecture that training starts from."""
    if require_language_model(upstream, "init") != model:
        raise ValueError(f"the model of `init` has another architecture than {what}; give both the same config")


def check_same_tokenizer(given: Mapping[str, Tokenizer]) -> None:
    """Raises ValueError when tokenizers that must agree don't."""
    (first, expected), *others = given.items()
    for name, tokenizer in others:
        if tokenizer.fingerprint != expected.fingerprint:
            raise ValueError(f"the inputs {first!r} and {name!r} were made with different tokenizers; they must share one")


def heldout(training: Training, data: Any, tokenizer: Tokenizer) -> Loader | None:
    """One ordered pass over the split "heldout", None when the loop doesn't evaluate."""
    return None if training.loop.eval_every is None else training.load(data, tokenizer, seed=None, split="heldout", epochs=1)


def stage_mesh(context: StageContext) -> Mesh:
    """The device mesh of a running stage."""
    return build_mesh(context.mesh)


def params_on_mesh(artifact: Artifact, model: Model, mesh: Mesh, rules: Rules) -> Params:
    """An artifact's parameters, restored straight onto the mesh in the dtype in which they were saved."""
    saved = jax.eval_shape(artifact.stored_model().init, jax.eval_shape(jax.random.key, 0))
    return artifact.load_params(saved, place.shardings(model.axes, saved, mesh, rules))


def starting_from(artifact: Artifact | None, spec: TrainSpec) -> Callable[[], Params] | None:
    """Reads the parameters to start from when the loop asks for them; None = random ones."""
    return None if artifact is None else lambda: params_on_mesh(artifact, spec.model, spec.mesh, spec.rules)


def chat_of(artifact: Artifact | None) -> Chat | None:
    """The chat format of the model that training starts from, None where it starts from random parameters."""
    return None if artifact is None else artifact.chat()


# What a stage takes over of the optimizer's state of the stage before: "all" of it, its "mean_squares" without the momentum, or
# (None) nothing. The schedule starts anew; `lmx.optim.Part` continues it.
KeepOptimizer = Literal["all", "mean_squares"] | None


def optimizer_state_of(artifact: Artifact, spec: TrainSpec, keep: Literal["all", "mean_squares"]) -> PyTree:
    """The optimizer state at the end of the stage that left a model, its schedules set back to their start.

    Args:
      artifact: the model.
      spec: of the stage that goes on, with the same kind of optimizer.
      keep: see `KeepOptimizer`.

    Raises:
      ValueError: the stage left no checkpoint, or one of another optimizer; says so in a sentence.
    """
    lengths = sorted(artifact.path.glob("length_*"), key=lambda folder: int(folder.name.split("_")[1]))  # of `Lengthen`
    directory = (lengths[-1] if lengths else artifact.path) / "checkpoints"
    if not directory.exists():
        raise ValueError(f"{artifact.path} has no checkpoints to take the optimizer's state from; set keep_optimizer=None")
    with Checkpointer(directory) as checkpointer:
        try:
            state = checkpointer.restore(checkpointer.steps()[-1], abstract_state(spec)).state
        except CheckpointError as error:
            raise ValueError(f"the optimizer's state can't be kept: {error}") from error
    return handed_on(state.opt_state, momentum=keep == "all")


def frozen_on_mesh(artifact: Artifact, spec: TrainSpec, name: str) -> dict[str, Params]:
    """The parameters of one of the spec's frozen models."""
    return {name: params_on_mesh(artifact, spec.frozen_models[name], spec.mesh, spec.rules)}


def train(
    spec: TrainSpec,
    training: Training,
    context: StageContext,
    *,
    loader: Loader,
    eval_loader: Loader | None = None,
    frozen: Mapping[str, Params] | None = None,
    init_params: Callable[[], Params] | None = None,
    init_opt_state: Callable[[], PyTree] | None = None,
) -> LoopResult:
    """Runs the loop in the stage's folder; what becomes of the parameters is the caller's."""
    config = training.loop
    if context.profile and config.profile_steps is None:
        config = dataclasses.replace(config, profile_steps=3)
    frozen_configs = tuple(model.config for model in spec.frozen_models.values())
    run = RunContext(
        workdir=context.workdir,
        name=f"stage {context.name}",
        learning_rate=training.optimizer.learning_rate(config.steps),
        flops_per_token=lambda length: training.flops_per_token(spec.model.config, frozen_configs, length=length),
    )
    return loop.train(
        spec,
        config,
        loader=loader,
        eval_loader=eval_loader,
        run=run,
        key=jax.random.key(context.seed),
        frozen=frozen,
        init_params=init_params,
        init_opt_state=init_opt_state,
        ramp=training.shapes if training.ramp else None,
        average_steps=training.average.steps(config) if isinstance(training.average, Checkpoints) else (),
    )


def leave_model(
    result: LoopResult, context: StageContext, *, config: DecoderConfig, params: Params, tokenizer: Tokenizer, chat: Chat | None
) -> StageResult:
    """Writes the model artifact of a stage that has trained, and sums the stage up."""
    artifacts.write_model(context.workdir, config=config, params=params, tokenizer=tokenizer, chat=chat)
    return StageResult(tokens=result.tokens, metrics={**result.metrics, "skipped": result.skipped})


def fit(
    spec: TrainSpec,
    training: Training,
    context: StageContext,
    *,
    tokenizer: Tokenizer,
    loader: Loader,
    eval_loader: Loader | None = None,
    frozen: Mapping[str, Params] | None = None,
    init_params: Callable[[], Params] | None = None,
    init_opt_state: Callable[[], PyTree] | None = None,
    chat: Chat | None = None,
) -> StageResult:
    """Trains and leaves the model artifact: parameters, architecture, tokenizer, and the chat format of the model it came from."""
    result = train(
        spec,
        training,
        context,
        loader=loader,
        eval_loader=eval_loader,
        frozen=frozen,
        init_params=init_params,
        init_opt_state=init_opt_state,
    )
    return leave_model(result, context, config=spec.model.config, params=result.params, tokenizer=tokenizer, chat=chat)
