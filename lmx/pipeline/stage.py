"""What a stage is: its inputs, its one duty `run`, and the hooks that let it be checked and counted before anything runs.

A stage is a frozen keyword-only dataclass with `produces` and `run`. The other hooks are optional; each has a protocol here:

    check(upstream)          -> None                  HasCheck: sizes that don't fit, before anything runs
    check_mesh(mesh)         -> None                  HasMeshCheck: batches that the mesh can't hold
    architecture(upstream)   -> DecoderConfig | None  HasArchitecture: the model it leaves
    vocab_size(upstream)     -> int | None            HasVocabulary: size of the tokenizer it leaves
    workload(upstream)       -> Workload              HasWorkload: steps, tokens and FLOPs for `lmx show`
    batches(inputs, context) -> (iterator, tokenizer) HasBatches: what `lmx data` shows
    train_spec(upstream, mesh) -> TrainSpec           all that its step is made of, for planners and tests
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from etils import epath

from lmx.model.config import DecoderConfig
from lmx.pipeline.artifact import Artifact
from lmx.sharding.mesh import MeshConfig
from lmx.tokenizer.protocol import Tokenizer

Kind = Literal["tokenizer", "model", "reward_model", "dataset", "teacher_logits", "report"]


@dataclasses.dataclass(frozen=True)
class Ref:
    """The artifact of a stage of the same experiment."""

    stage: str


@dataclasses.dataclass(frozen=True)
class External:
    """An artifact, or a folder or file of another origin, that exists already; relative to the current folder."""

    path: str


Source = Ref | External


def input_field(*kinds: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that holds sources (one, a tuple or a dict of them) of artifacts of the given kinds.

    Args:
      *kinds: accepted artifact kinds; "files" accepts an `External` that no stage has written.
      default: default of the field; without it the input is required.
    """
    return dataclasses.field(default=default, metadata={"kinds": kinds})


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamInfo:
    """What is known of an input before anything runs.

    Attributes:
      kind: kind of the artifact; "files" for an External that no stage has written.
      stage: config of the stage that will write it, None for an External.
      artifact: the artifact, for an External; None when a stage of this experiment is still to write it.
      architecture: the model it will hold, None when it holds none.
      vocab_size: pieces of the tokenizer it will hold, None when it holds none or the stage doesn't say.
    """

    kind: str
    stage: "Stage | None" = None
    artifact: Artifact | None = None
    architecture: DecoderConfig | None = None
    vocab_size: int | None = None


Upstream = Mapping[str, UpstreamInfo]  # by dotted field path: "teacher", "data.tokenizer", "sources.0"
Inputs = Mapping[str, Artifact]  # by the same paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the runner gives a running stage. Lines for the user go to `lmx.core.logging.logger`.

    Attributes:
      workdir: the stage's own folder, which becomes the artifact; it holds what an interrupted run left there.
      name: the stage's name in the experiment.
      seed: derived from the experiment's seed and the stage's name.
      mesh: shape of the device mesh.
      profile: write a profiler trace into `workdir / "profile"`.
    """

    workdir: epath.Path
    name: str
    seed: int
    mesh: MeshConfig = MeshConfig()
    profile: bool = False

    @property
    def experiment_dir(self) -> epath.Path:
        """The workdir of the whole experiment, for what a person should find there."""
        return self.workdir.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a finished stage reports for its manifest.

    Attributes:
      tokens: tokens that went through the model, 0 when it trains none.
      metrics: final figures by name.
    """

    tokens: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What a stage will cost.

    Attributes:
      steps: optimizer steps.
      tokens: tokens of all its batches.
      flops: floating point operations of all steps, frozen models included.
    """

    steps: int
    tokens: int
    flops: float


class Stage(Protocol):
    """One step of an experiment; implementations are frozen keyword-only dataclasses.

    Every field, nested ones included, that holds a Ref or an External is an input, keyed by its dotted path.
    """

    produces: ClassVar[str]

    def run(self, inputs: Inputs, context: StageContext) -> StageResult | None:
        """Writes the artifact into `context.workdir`, going on where an interrupted run stopped; the runner writes the manifest."""


@runtime_checkable
class HasCheck(Protocol):
    """A stage that knows what doesn't fit."""

    def check(self, upstream: Upstream) -> None:
        """Raises ValueError, in one sentence with the numbers, when the stage can't work on these inputs."""


@runtime_checkable
class HasMeshCheck(Protocol):
    """A stage that knows which meshes hold its batches."""

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Raises ValueError, in one sentence with the numbers, when a mesh of these sizes can't hold a batch."""


@runtime_checkable
class HasArchitecture(Protocol):
    """A stage that leaves a model."""

    def architecture(self, upstream: Upstream) -> DecoderConfig | None:
        """The architecture of that model."""


@runtime_checkable
class HasVocabulary(Protocol):
    """A stage that leaves a tokenizer."""

    def vocab_size(self, upstream: Upstream) -> int | None:
        """Number of its pieces."""


@runtime_checkable
class HasWorkload(Protocol):
    """A stage that can be counted."""

    def workload(self, upstream: Upstream) -> Workload:
        """Steps, tokens and FLOPs of the whole stage."""


@runtime_checkable
class HasBatches(Protocol):
    """A stage that trains on batches that can be looked at."""

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Iterator[Any], Tokenizer]:
        """Host batches (LMBatch or PreferenceBatch) exactly as the stage trains on them, and the tokenizer that decodes them.

        `inputs` raises a ValueError that names the command to run first when the asked artifact isn't there.
        """
