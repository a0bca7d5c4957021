"""What every training stage shares: its numbers, its checks, and the way from a TrainSpec to an artifact."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lmx.core.types import Objective, Params, Precision, PyTree
from lmx.data.loader import Loader
from lmx.model.accounting import flops_per_token
from lmx.model.config import DecoderConfig, ScalarHead
from lmx.model.decoder import Model, build_model
from lmx.optim.optimizers import Optimizer
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.stage import StageContext, StageResult, Upstream, UpstreamInfo, Workload
from lmx.sampling.generate import Sampling
from lmx.sharding import place
from lmx.sharding.mesh import build_mesh
from lmx.sharding.rules import DEFAULT_RULES, Rules
from lmx.tokenizer.protocol import Tokenizer
from lmx.train import loop
from lmx.train.config import LoopConfig, RunContext
from lmx.train.execution import build_execution
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage trains.

    Attributes:
      loop: steps, logging, evaluation, checkpoints.
      optimizer: with its learning-rate schedule over `loop.steps`.
      batch_size: rows (pairs, for preferences) of the global batch.
      length: T, tokens of a row.
      microbatches: gradient accumulation.
      clip_norm: global-norm clip of the gradient, None = off.
      precision: dtypes of parameters and activations.
      remat: None, "full" or "dots", see `lmx.model.remat`.
      rules: logical axis -> mesh axes.
    """

    loop: LoopConfig
    optimizer: Optimizer
    batch_size: int
    length: int
    microbatches: int = 1
    clip_norm: float | None = 1.0
    precision: Precision = Precision()
    remat: str | None = None
    rules: Rules = DEFAULT_RULES

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.length < 2:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1, length={self.length} at least 2")
        if self.microbatches < 1 or self.batch_size % self.microbatches:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of microbatches={self.microbatches}")

    def check(self, model: DecoderConfig, tokenizer: UpstreamInfo | None = None) -> None:
        """Raises ValueError when the rows are longer than the model takes, or the tokenizer has more pieces than its table rows."""
        check_length(self.length, model, "training.length")
        self.optimizer.learning_rate(self.loop.steps)  # a warm-up longer than the run is refused here
        if tokenizer is not None and tokenizer.vocab_size is not None:
            check_vocabulary(tokenizer.vocab_size, model)

    def model(self, config: DecoderConfig, mesh: Mesh) -> Model:
        """The model, built to run on the mesh."""
        return build_model(config, build_execution(mesh, self.rules, precision=self.precision, remat=self.remat))

    def spec(
        self, model: Model, objective: Objective, batch_spec: PyTree, mesh: Mesh, frozen_models: Mapping[str, Model] | None = None
    ) -> TrainSpec:
        """All that the step is made of."""
        return TrainSpec(
            model=model,
            objective=objective,
            optimizer=self.optimizer.build(self.loop.steps),
            batch_spec=batch_spec,
            mesh=mesh,
            rules=self.rules,
            precision=self.precision,
            frozen_models=frozen_models or {},
            microbatches=self.microbatches,
            clip_norm=self.clip_norm,
        )

    def workload(self, model: DecoderConfig, *, frozen: tuple[DecoderConfig, ...] = (), rows: int = 1) -> Workload:
        """Steps, tokens and FLOPs of the stage; `rows` is the number of sequences in an element of the batch (2 for pairs)."""
        tokens = self.loop.steps * self.batch_size * self.length * rows
        return Workload(steps=self.loop.steps, tokens=tokens, flops=tokens * self.flops_per_token(model, frozen))

    def flops_per_token(self, model: DecoderConfig, frozen: tuple[DecoderConfig, ...] = ()) -> float:
        """Of a step: forward and backward of the model, forward of the frozen ones."""
        own = flops_per_token(model, self.length, training=True)
        return own + sum(flops_per_token(config, self.length, training=False) for config in frozen)

    def load(self, data: Any, tokenizer: Tokenizer, *, seed: int | None, split: str = "train", epochs: int | None = None) -> Loader:
        """This process's batches of a data config: `PackedText`, `Instructions` or `Preferences`."""
        return data.loader(
            tokenizer,
            batch_size=self.batch_size,
            length=self.length,
            seed=seed,
            split=split,
            epochs=epochs,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
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


def frozen_on_mesh(artifact: Artifact, spec: TrainSpec, name: str) -> dict[str, Params]:
    """The parameters of one of the spec's frozen models."""
    return {name: params_on_mesh(artifact, spec.frozen_models[name], spec.mesh, spec.rules)}


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
) -> StageResult:
    """Trains and leaves the model artifact: parameters, architecture, tokenizer."""
    config = training.loop
    if context.profile and config.profile_steps is None:
        config = dataclasses.replace(config, profile_steps=3)
    frozen_configs = tuple(model.config for model in spec.frozen_models.values())
    run = RunContext(
        workdir=context.workdir,
        name=f"stage {context.name}",
        learning_rate=training.optimizer.learning_rate(config.steps),
        flops_per_token=training.flops_per_token(spec.model.config, frozen_configs),
    )
    result = loop.train(
        spec,
        config,
        loader=loader,
        eval_loader=eval_loader,
        run=run,
        key=jax.random.key(context.seed),
        frozen=frozen,
        init_params=init_params,
    )
    artifacts.write_model(context.workdir, config=spec.model.config, params=result.params, tokenizer=tokenizer)
    return StageResult(tokens=result.tokens, metrics={**result.metrics, "skipped": result.skipped})
