"""The stage that lengthens a model's context step by step, each step ending where measurements say so."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from lmx.core import storage
from lmx.core.errors import RunError
from lmx.core.logging import logger
from lmx.core.types import Params, PyTree
from lmx.data.batches import lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.text import PackedText
from lmx.eval.needle import NeedleTest, find_needles
from lmx.eval.positions import loss_by_position
from lmx.model.config import DecoderConfig, LinearScaling, Llama3Scaling, YarnScaling
from lmx.model.context import with_context
from lmx.model.decoder import Model
from lmx.objectives import RouterLoss, language_model
from lmx.optim import handed_on
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding.mesh import MeshConfig
from lmx.stages import training as stage_training
from lmx.stages.training import KeepOptimizer, Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train import loop
from lmx.train.config import RunContext
from lmx.train.loop import LoopResult
from lmx.train.spec import TrainSpec

GATES = "gates.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthGate:
    """When a length has been trained enough: both must hold in one look.

    Attributes:
      short_length: T of the short rows.
      short_tolerance: nats a token by which the held-out loss on short rows may exceed the model's before the stage.
      short_batches: held-out batches of short rows.
      needle: what is asked of texts that fill the length.
      accuracy: share of them to be answered exactly.
      every: steps between two looks.
      batch_size: short rows at once.

    Reference: Grattafiori et al. (2024), arXiv:2407.21783, section 3.4.2: short-context evaluations recovered, and needle in a
    haystack solved up to the length. Their tolerance is not published.
    """

    short_length: int
    short_tolerance: float = 0.01
    short_batches: int = 8
    needle: NeedleTest
    accuracy: float = 1.0
    every: int = 50
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.short_tolerance < 0 or not 0 <= self.accuracy <= 1:
            raise ValueError(
                f"gate.short_tolerance={self.short_tolerance} must not be negative, and gate.accuracy={self.accuracy} lie in [0, 1]"
            )
        for name in ("short_length", "short_batches", "every", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"gate.{name}={getattr(self, name)} must be at least 1")

    def opens(self, *, short_loss: float, before: float, accuracy: float) -> bool:
        """Whether the next length may begin: short loss and needle accuracy now, and the short loss before the stage."""
        return math.isfinite(short_loss) and short_loss <= before + self.short_tolerance and accuracy >= self.accuracy

    def lacks(self, *, short_loss: float, before: float, accuracy: float) -> str:
        """What is missing, in words."""
        missing = []
        if not short_loss <= before + self.short_tolerance:
            missing.append(f"the short-context loss is {short_loss:.4f} where {before + self.short_tolerance:.4f} is needed")
        if accuracy < self.accuracy:
            missing.append(f"{accuracy:.3f} of the needles are found where {self.accuracy:.3f} is needed")
        return " and ".join(missing) or "nothing"


@dataclasses.dataclass(frozen=True)
class _Watch:
    """The gate of one length, as the loop asks it."""

    gate: LengthGate
    measure: Callable[[Params], tuple[float, float]]  # short loss, needle accuracy
    before: float

    @property
    def every(self) -> int:
        return self.gate.every

    def __call__(self, params: Params) -> tuple[dict[str, float], bool]:
        short_loss, accuracy = self.measure(params)
        opens = self.gate.opens(short_loss=short_loss, before=self.before, accuracy=accuracy)
        return {"gate/short_loss": short_loss, "gate/needle": accuracy, "gate/opens": float(opens)}, opens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengthen:
    """Continued pre-training on longer and longer rows; a length ends when its gate opens, or at its last step.

    Tokens per batch stay as they are while rows get longer and fewer; the optimizer's state goes on through the lengths, its
    schedule starts anew in each. `gates.json` holds every look at every gate.

    Attributes:
      source: the model to lengthen.
      data: long text (its mixture counts tokens anew in each length); the split "heldout" is what the short loss is measured on.
      lengths: of the rows, ascending.
      training: `loop.steps` is the most steps of one length, so `batch_size * length * loop.steps` bounds its tokens; `batch_size *
        length` are the tokens of a batch, kept as near as whole rows allow. No ramp.
      gate: when a length is done.
      rope_theta: RoPE base from the start of the stage on, see `lmx.model.rope.critical_base`; None = kept.
      rope_scaling: of the frequencies from the start of the stage on (Llama 3.1 switches it on here); None = kept.
      when_shut: what a gate does that never opens: "stop" the run with a sentence, or go on to the next length ("continue").
      keep_optimizer: what to begin with of the optimizer's state of the stage that left `source`, as in `Pretrain`.
      z_loss: coefficient of the squared log-normalizer.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    source: Ref | External = input_field("model")
    data: PackedText
    lengths: tuple[int, ...]
    training: Training
    gate: LengthGate
    rope_theta: float | None = None
    rope_scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None
    when_shut: Literal["stop", "continue"] = "stop"
    keep_optimizer: KeepOptimizer = None
    z_loss: float = 0.0
    router: RouterLoss = RouterLoss()

    def __post_init__(self) -> None:
        if not self.lengths or any(low >= high for low, high in zip(self.lengths, self.lengths[1:], strict=False)):
            raise ValueError(f"lengths={self.lengths} must be at least one length, each greater than the one before it")
        if self.training.ramp or self.training.average is not None:
            raise ValueError("training.ramp and training.average have no place in Lengthen: it changes lengths at its gates")
        if self.gate.short_length > self.lengths[0]:
            raise ValueError(f"gate.short_length={self.gate.short_length} must not exceed the first length, {self.lengths[0]}")

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        return self._lengthened(stage_training.require_language_model(upstream, "source"))

    def _lengthened(self, source: DecoderConfig) -> DecoderConfig:
        return with_context(
            source,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            max_length=max(source.max_length, self.lengths[-1]),
        )

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["source"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        model = self.architecture(upstream)
        for length in self.lengths:
            self.training_at(length).check(model)

    def check_mesh(self, mesh: MeshConfig) -> None:
        """As `HasMeshCheck.check_mesh`."""
        for length in self.lengths:
            self.training_at(length).check_mesh(mesh)

    def training_at(self, length: int) -> Training:
        """The training of one length: as many whole rows as the tokens of a batch give.

        Raises:
          ValueError: a batch has fewer tokens than a row, or no whole rows for every microbatch.
        """
        tokens = self.training.batch_size * self.training.length
        if tokens < length:
            raise ValueError(
                f"a batch of {self.training.batch_size} x {self.training.length} tokens holds no row of {length}; raise "
                "training.batch_size"
            )
        return dataclasses.replace(self.training, batch_size=tokens // length, length=length)

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`: the most that it may take, all gates opening at the last step."""
        model = self.architecture(upstream)
        parts = [self.training_at(length).workload(model) for length in self.lengths]
        return Workload(
            steps=sum(part.steps for part in parts),
            tokens=sum(part.tokens for part in parts),
            flops=sum(part.flops for part in parts),
        )

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`, of the first length."""
        tokenizer = inputs["source"].tokenizer()
        return self._loader(self.lengths[0], tokenizer, context), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`, of the last length."""
        return self._spec(self.architecture(upstream), self.lengths[-1], mesh)

    def _loader(self, length: int, tokenizer: Tokenizer, context: StageContext) -> Loader:
        return self.training_at(length).load(self.data, tokenizer, seed=context.seed ^ length)

    def _spec(self, config: DecoderConfig, length: int, mesh: Mesh) -> TrainSpec:
        training = self.training_at(length)
        model = training.model(config, mesh)
        objective = language_model(model.apply, z_loss=self.z_loss, router=self.router)
        return training.spec(model, objective, lm_batch_spec(training.batch_size, length), mesh)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        source, mesh = inputs["source"], stage_training.stage_mesh(context)
        tokenizer, config = source.tokenizer(), self._lengthened(source.model_config())
        specs = {length: self._spec(config, length, mesh) for length in self.lengths}
        first = specs[self.lengths[0]]
        self.gate.needle.rows(tokenizer, length=self.lengths[0], depth=0.0)  # refused here, not at the first look
        init_params: Callable[[], Params] | None = stage_training.starting_from(source, first)
        init_opt_state: Callable[[], PyTree] | None = None
        if self.keep_optimizer is not None:
            init_opt_state = functools.partial(stage_training.optimizer_state_of, source, first, self.keep_optimizer)
        before = self._short_loss_before(source, mesh, tokenizer, context)
        tokens, log, result = 0, [], None
        for length in self.lengths:
            watch = _Watch(self.gate, self._measure(specs[length].model, tokenizer, length), before)
            result = self._train(length, specs[length], tokenizer, context, watch, init_params, init_opt_state)
            tokens += result.tokens
            log.append(_record(length, result, folder_of(context.workdir, length)))
            storage.write_json(context.workdir / GATES, {"short_loss_before": before, "lengths": log})
            self._judge(length, result, before, context)
            init_params, init_opt_state = _handed_on(result)
        assert result is not None, "there is at least one length"
        artifacts.write_model(context.workdir, config=config, params=result.params, tokenizer=tokenizer, chat=source.chat())
        self._write_metrics(context.workdir)
        return StageResult(tokens=tokens, metrics=_figures(log, before))

    def _train(
        self,
        length: int,
        spec: TrainSpec,
        tokenizer: Tokenizer,
        context: StageContext,
        watch: _Watch,
        init_params: Callable[[], Params] | None,
        init_opt_state: Callable[[], PyTree] | None,
    ) -> LoopResult:
        training = self.training_at(length)
        run = RunContext(
            workdir=folder_of(context.workdir, length),
            name=f"stage {context.name}, length {length}",
            learning_rate=training.optimizer.learning_rate(training.loop.steps),
            flops_per_token=training.flops_per_token(spec.model.config),
        )
        return loop.train(
            spec,
            training.loop,
            loader=self._loader(length, tokenizer, context),
            eval_loader=stage_training.heldout(training, self.data, tokenizer),
            run=run,
            key=jax.random.key(context.seed ^ length),
            init_params=init_params,
            init_opt_state=init_opt_state,
            gate=watch,
        )

    def _measure(self, model: Model, tokenizer: Tokenizer, length: int) -> Callable[[Params], tuple[float, float]]:
        """A function from parameters to short-context loss and needle accuracy."""

        def measure(params: Params) -> tuple[float, float]:
            needles = find_needles(self.gate.needle, model, params, tokenizer, length=length)
            return self._short_loss(model, params, tokenizer), needles.accuracy

        return measure

    def _short_loss(self, model: Model, params: Params, tokenizer: Tokenizer) -> float:
        gate = self.gate
        loader = self.data.loader(
            tokenizer, batch_size=gate.batch_size, length=gate.short_length, seed=None, split="heldout", epochs=1
        )
        batches = (next(loader) for _ in range(min(gate.short_batches, loader.num_batches or gate.short_batches)))
        return loss_by_position(model, params, batches, edges=(0, gate.short_length)).overall

    def _short_loss_before(self, source: artifacts.Artifact, mesh: Mesh, tokenizer: Tokenizer, context: StageContext) -> float:
        """The short-context loss of the model as it comes, with its own RoPE."""
        model = self.training.model(source.model_config(), mesh)
        params = stage_training.params_on_mesh(source, model, mesh, self.training.rules)
        loss = self._short_loss(model, params, tokenizer)
        logger.info("stage %s: short-context loss %.4f before lengthening", context.name, loss)
        return loss

    def _judge(self, length: int, result: LoopResult, before: float, context: StageContext) -> None:
        """Says how a length ended; raises RunError where a gate that stayed shut stops the run."""
        name = f"stage {context.name}"
        if result.opened:
            logger.info("%s: the gate of length %d opened after %d steps", name, length, result.step)
            return
        accuracy, short_loss = result.metrics["gate/needle"], result.metrics["gate/short_loss"]
        lacks = self.gate.lacks(short_loss=short_loss, before=before, accuracy=accuracy)
        sentence = (
            f"{name}: the gate of length {length} stayed shut for all of {result.step} steps ({result.tokens} tokens): {lacks}"
        )
        if self.when_shut == "stop":
            raise RunError(
                f"{sentence}; raise training.loop.steps, ask for less in `gate`, or set when_shut='continue' (measurements in "
                f"{context.workdir / GATES})"
            )
        logger.warning("%s; going on, as when_shut='continue' says", sentence)

    def _write_metrics(self, workdir: epath.Path) -> None:
        """One metrics file for the whole stage, steps counted through all lengths."""
        lines: list[str] = []
        start = 0
        for length in self.lengths:
            records = storage.read_json_lines(folder_of(workdir, length) / "metrics.jsonl")
            lines += [json.dumps({**record, "step": start + record["step"], "length": length}) for record in records]
            start += max((record["step"] for record in records), default=0)
        storage.write_text(workdir / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


def folder_of(workdir: epath.Path, length: int) -> epath.Path:
    """Where a length's checkpoints and metrics lie."""
    return workdir / f"length_{length}"


def _handed_on(result: LoopResult) -> tuple[Callable[[], Params], Callable[[], PyTree]]:
    """Parameters and optimizer state with which the next length begins."""
    return lambda: result.params, lambda: handed_on(result.opt_state)


def _record(length: int, result: LoopResult, folder: epath.Path) -> dict[str, Any]:
    """What is written of a length: its end, and every look at its gate."""
    looks = [
        {
            "step": record["step"],
            **{name.removeprefix("gate/"): value for name, value in record.items() if name.startswith("gate/")},
        }
        for record in storage.read_json_lines(folder / "metrics.jsonl")
        if "gate/opens" in record
    ]
    return {"length": length, "steps": result.step, "tokens": result.tokens, "opened": result.opened, "looks": looks}


def _figures(log: list[dict[str, Any]], before: float) -> Mapping[str, float]:
    """Final figures for the manifest."""
    figures = {"short_loss_before": before}
    for record in log:
        last = record["looks"][-1]
        name = f"length_{record['length']}"
        figures |= {f"{name}/steps": record["steps"], f"{name}/opened": float(record["opened"])}
        short_loss = math.nan if last["short_loss"] is None else last["short_loss"]  # as JSON has it
        figures |= {f"{name}/short_loss": short_loss, f"{name}/needle": last["needle"]}
    return figures
