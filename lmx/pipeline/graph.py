"""The graph of an experiment: inputs found in the stages' fields, ordered, and checked before anything runs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from lmx.core import overrides, storage, validate
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import External, HasArchitecture, HasCheck, HasMeshCheck, HasVocabulary, Ref, Source, Stage, UpstreamInfo
from lmx.sharding.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a stage: where it comes from and what it may be (no kinds = anything)."""

    source: Source
    kinds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A stage in its place.

    Attributes:
      name: name of the stage.
      stage: its config.
      inputs: inputs by dotted field path.
      upstream: what is known of each of them.
      info: what stages behind this one may know of it.
    """

    name: str
    stage: Stage
    inputs: Mapping[str, Input]
    upstream: Mapping[str, UpstreamInfo]
    info: UpstreamInfo

    def parents(self) -> tuple[str, ...]:
        """Names of the stages that it reads, each once."""
        return _parents(self.inputs)


@dataclasses.dataclass(frozen=True)
class Graph:
    """All stages by name, each after those that it reads."""

    nodes: Mapping[str, Node]

    def node(self, name: str) -> Node:
        """The stage of that name; ValueError with the nearest names when there is none."""
        if name not in self.nodes:
            raise ValueError(f"the experiment has no stage {name!r}; {_did_you_mean(name, self.nodes)}")
        return self.nodes[name]

    def behind(self, name: str) -> tuple[str, ...]:
        """The stage and all that read it, directly or not, in order."""
        found = {self.node(name).name}
        for node in self.nodes.values():
            if found.intersection(node.parents()):
                found.add(node.name)
        return tuple(other for other in self.nodes if other in found)

    def before(self, name: str) -> tuple[str, ...]:
        """All stages that the stage reads, directly or not, in order, without itself."""
        found = set(self.node(name).parents())
        for other in reversed(tuple(self.nodes)):
            if other in found:
                found.update(self.nodes[other].parents())
        return tuple(other for other in self.nodes if other in found)


def inputs_of(stage: Stage) -> dict[str, Input]:
    """Inputs of a stage by dotted field path: every Ref and External in its fields, nested dataclasses and containers."""
    return dict(_walk(stage, "", ()))


def _walk(value: Any, path: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, Input]]:
    if isinstance(value, Ref | External):
        yield path, Input(value, kinds)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            below = field.metadata.get("kinds", kinds)
            yield from _walk(getattr(value, field.name), f"{path}.{field.name}" if path else field.name, below)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}", kinds)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}.{index}", kinds)


def resolve(experiment: Experiment) -> Graph:
    """Orders and checks an experiment.

    Raises:
      ValueError: for a value of the wrong type, a missing input, a cycle, an input of the wrong kind, or what a stage's own
        `check` refuses.
    """
    validate.validate(experiment)
    inputs = {name: inputs_of(stage) for name, stage in experiment.stages.items()}
    for name, found in inputs.items():
        for path, entry in found.items():
            if isinstance(entry.source, Ref) and entry.source.stage not in experiment.stages:
                hint = _did_you_mean(entry.source.stage, experiment.stages)
                raise ValueError(f"stages.{name}.{path} refers to the stage {entry.source.stage!r}, which doesn't exist; {hint}")
    nodes: dict[str, Node] = {}
    for name in _ordered({name: _parents(found) for name, found in inputs.items()}):
        nodes[name] = _node(name, experiment.stages[name], inputs[name], nodes)
        _check_mesh(nodes[name], experiment.mesh)
    return Graph(nodes)


def _check_mesh(node: Node, mesh: MeshConfig) -> None:
    if isinstance(node.stage, HasMeshCheck):
        try:
            node.stage.check_mesh(mesh)
        except ValueError as error:
            raise ValueError(f"stage {node.name!r}: {error}") from error


def _node(name: str, stage: Stage, inputs: dict[str, Input], nodes: Mapping[str, Node]) -> Node:
    upstream = {}
    for path, entry in inputs.items():
        source = entry.source
        known = nodes[source.stage].info if isinstance(source, Ref) else _external(source, f"stages.{name}.{path}")
        if entry.kinds and known.kind not in entry.kinds:
            origin = f"the stage {source.stage!r} produces" if isinstance(source, Ref) else f"{source.path} holds"
            raise ValueError(f"stages.{name}.{path} needs {_or(entry.kinds)}, but {origin} {known.kind!r}")
        upstream[path] = known
    try:
        if isinstance(stage, HasCheck):
            stage.check(upstream)
        info = UpstreamInfo(
            kind=stage.produces,
            stage=stage,
            architecture=stage.architecture(upstream) if isinstance(stage, HasArchitecture) else None,
            vocab_size=stage.vocab_size(upstream) if isinstance(stage, HasVocabulary) else None,
        )
    except ValueError as error:
        raise ValueError(f"stage {name!r}: {error}") from error
    return Node(name=name, stage=stage, inputs=inputs, upstream=upstream, info=info)


def _external(source: External, place: str) -> UpstreamInfo:
    path = storage.as_path(source.path)
    if not path.exists():
        raise ValueError(f"{place}: nothing exists at {path}")
    if not artifacts.is_artifact(path):
        return UpstreamInfo(kind="files", artifact=artifacts.Artifact(path))
    found = artifacts.open_finished(path)
    return UpstreamInfo(
        kind=found.kind,
        artifact=found,
        architecture=found.model_config() if found.has_model() else None,
        vocab_size=found.tokenizer().vocab_size if found.has_tokenizer() else None,
    )


def _parents(inputs: Mapping[str, Input]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.source.stage for entry in inputs.values() if isinstance(entry.source, Ref)))


def _ordered(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names with parents first, otherwise in the given order; ValueError with the cycle's path if there is one."""
    done: dict[str, None] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = [*trail[trail.index(name) :], name]
            raise ValueError(f"stages read each other in a cycle: {' -> '.join(cycle)} (each reads the next)")
        if name in done:
            return
        for parent in parents[name]:
            visit(parent, (*trail, name))
        done[name] = None

    for name in parents:
        visit(name, ())
    return list(done)


def _did_you_mean(name: str, names: Mapping[str, Any]) -> str:
    close = overrides.nearest(name, names)
    return f"did you mean {_or(tuple(close))}?" if close else f"its stages are {', '.join(names)}"


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)
