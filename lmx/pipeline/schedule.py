"""What to do with each stage of an experiment in a workdir: run it, resume it, leave it, or refuse with the reason."""

import dataclasses
import hashlib
import shlex
from collections.abc import Container, Iterable, Mapping
from typing import Literal

from etils import epath

from lmx.core import config as configs
from lmx.core import fingerprint as fingerprints
from lmx.core import serialize
from lmx.data import sources
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.artifact import InputRecord, Manifest
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.graph import Graph, Node
from lmx.pipeline.stage import Ref

Action = Literal["run", "resume", "skip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One stage and what is to be done with it.

    Attributes:
      node: the stage.
      action: "run" it from the start, "resume" what an interrupted run left, or "skip" it, being finished.
      seed: the stage's seed.
      fingerprint: of its config, seed and inputs.
      inputs: artifacts and data that it reads, as the manifest will record them.
    """

    node: Node
    action: Action
    seed: int
    fingerprint: str
    inputs: Mapping[str, InputRecord]


def stage_seed(seed: int, name: str) -> int:
    """Seed of a stage, in [0, 2^31): a hash of the experiment's seed and the name, so that a new stage shifts no other's."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def plan(
    experiment: Experiment, graph: Graph, workdir: epath.Path, *, only: str | None = None, from_: str | None = None
) -> list[Step]:
    """Decides for every stage, in order, without touching anything.

    Args:
      experiment: the experiment.
      graph: its graph, resolved.
      workdir: where its artifacts lie.
      only: run this stage alone; all that it reads must be finished.
      from_: redo this stage and all behind it, whatever is there.

    Raises:
      ValueError: for an unknown stage, an artifact made with another config, or an input of `only` that isn't finished.
      ValueError or OSError: for data that is missing or unreadable.
    """
    if only is not None and from_ is not None:
        raise ValueError(
            f"--only {only} with --from {from_} would leave the stages behind {from_} out of date; give one of the two"
        )
    redo = graph.behind(from_) if from_ is not None else ()
    names = (*graph.before(only), only) if only is not None else tuple(graph.nodes)
    steps = compare(experiment, graph, workdir, names, redo=redo)
    if only is not None:
        missing = next((name for name in graph.node(only).parents() if steps[name].action != "skip"), None)
        if missing is not None:
            raise ValueError(
                f"stage {only!r} reads {missing!r}, which is not finished in {workdir}; run it first, with --only {missing}"
            )
        return [steps[only]]
    return list(steps.values())


def compare(
    experiment: Experiment, graph: Graph, workdir: epath.Path, names: Iterable[str], *, redo: Container[str] = ()
) -> dict[str, Step]:
    """Each named stage and what the workdir says of it.

    Args:
      experiment: the experiment.
      graph: its graph, resolved.
      workdir: where its artifacts lie.
      names: stages in the graph's order, each with all that it reads.
      redo: of these, the stages whose artifacts don't count.

    Raises:
      ValueError: for an artifact that was made with another config.
    """
    steps: dict[str, Step] = {}
    for name in names:
        steps[name] = _step(experiment, graph.node(name), workdir, steps, fresh=name in redo)
    return steps


def _step(experiment: Experiment, node: Node, workdir: epath.Path, steps: Mapping[str, Step], *, fresh: bool) -> Step:
    seed = stage_seed(experiment.seed, node.name)
    inputs = {path: _record(node, path, steps) for path in node.inputs}
    data = sources.fingerprints(node.stage)  # the same config reads other text after its files have changed
    inputs |= {path: InputRecord(source="data", fingerprint=found) for path, found in data.items()}
    try:
        print_ = fingerprints.fingerprint(
            {"stage": node.stage, "seed": seed}, {path: record.fingerprint for path, record in inputs.items()}
        )
    except ValueError as error:
        raise ValueError(f"stage {node.name!r}: {error}") from error
    step = Step(node=node, action="run", seed=seed, fingerprint=print_, inputs=inputs)
    folder = workdir / node.name
    # A kill during the very first write leaves a hidden temporary file and nothing else.
    if fresh or not folder.exists() or all(file.name.startswith(".") for file in folder.iterdir()):
        return step
    if not artifacts.is_artifact(folder):
        raise ValueError(
            f"{folder} has files but no {artifacts.MANIFEST}, so no run of lmx wrote it; move it away or choose another workdir"
        )
    manifest = artifacts.read_manifest(folder)
    if manifest.fingerprint != print_:
        raise ValueError(_refusal(step, manifest, folder))
    return dataclasses.replace(step, action="skip" if manifest.status == "finished" else "resume")


def _record(node: Node, path: str, steps: Mapping[str, Step]) -> InputRecord:
    source = node.inputs[path].source
    if isinstance(source, Ref):
        return InputRecord(source=f"stage {source.stage}", fingerprint=steps[source.stage].fingerprint)
    found = node.upstream[path].artifact
    assert found is not None, "an External always has an artifact"
    return InputRecord(source=source.path, fingerprint=found.fingerprint())


def _refusal(step: Step, manifest: Manifest, folder: epath.Path) -> str:
    """Why an existing artifact doesn't fit the step, as a diff, and what can be done."""
    name = step.node.name
    changes = configs.diff_json(manifest.config, serialize.canonical(step.node.stage)).splitlines()
    if manifest.seed != step.seed:
        changes.append("the experiment's seed (or this stage's name) is another")
    for path in dict.fromkeys([*manifest.inputs, *step.inputs]):
        old, new = manifest.inputs.get(path), step.inputs.get(path)
        if old != new:
            changes.append(f"input {path}: {_shown(old)} -> {_shown(new)}")
    state = "was finished" if manifest.status == "finished" else "was begun"
    listed = "\n".join(f"  {change}" for change in changes)
    return (
        f"stage {name!r} in {folder} {state} with another config:\n{listed}\n"
        f"To redo it and all behind it, add --from {shlex.quote(name)} (what is there is kept as {name}.old-N); "
        "to keep it, take the change back or choose another --workdir."
    )


def _shown(record: InputRecord | None) -> str:
    return f"{record.source} ({record.fingerprint[:12]})" if record else "(absent)"
