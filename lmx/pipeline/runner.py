"""Runs an experiment in a workdir: skips what is finished, resumes what is not, and refuses what has changed."""

import dataclasses
import datetime
from collections.abc import Sequence

from etils import epath

from lmx.core import config as configs
from lmx.core import serialize, storage
from lmx.core.logging import logger
from lmx.pipeline import artifact as artifacts
from lmx.pipeline import graph as graphs
from lmx.pipeline import schedule
from lmx.pipeline.artifact import Artifact, Manifest
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.schedule import Step
from lmx.pipeline.stage import Ref, StageContext, StageResult

CONFIG_TEXT = "config.txt"


def run_experiment(
    experiment: Experiment,
    workdir: epath.PathLike,
    *,
    only: str | None = None,
    from_: str | None = None,
    profile: bool = False,
) -> dict[str, Artifact]:
    """Runs the stages that are not finished yet, each in its folder `workdir / name`.

    Everything is checked before anything is written. The resolved config goes to `workdir / "config.txt"` before the first
    stage. A stage's manifest says "running" from its start and "finished" only after everything else was written.

    Args:
      experiment: what to run.
      workdir: folder of the run; locked meanwhile.
      only: run this stage alone.
      from_: redo this stage and all behind it; their folders are renamed to `name.old-N` first.
      profile: stages write a profiler trace.

    Returns:
      Finished artifacts by stage name, of the stages that were run or skipped.

    Raises:
      ValueError: when the experiment can't be right, or an artifact in the workdir was made with another config.
      LockedError: when another process works there.
    """
    root = storage.as_path(workdir)
    graph = graphs.resolve(experiment)
    with storage.lock(root):
        steps = schedule.plan(experiment, graph, root, only=only, from_=from_)
        if from_ is not None:
            for name in reversed(graph.behind(from_)):  # the first stage last: what has moved is never half of a chain
                _move_aside(root, name)
        storage.write_text(root / CONFIG_TEXT, configs.to_text(experiment) + "\n")
        logger.info("%s: %s", root, _outlook(steps))
        for number, step in enumerate(steps, start=1):
            _announce(step, f"[{number}/{len(steps)}]")
            if step.action != "skip":
                _run_step(experiment, step, root, profile=profile)
        return {step.node.name: artifacts.open_finished(root / step.node.name) for step in steps}


def _outlook(steps: Sequence[Step]) -> str:
    done = [step.node.name for step in steps if step.action == "skip"]
    ahead = [step.node.name for step in steps if step.action != "skip"]
    return "; ".join([f"next {', '.join(ahead)}"] * bool(ahead) + [f"finished {', '.join(done)}"] * bool(done))


def _announce(step: Step, count: str) -> None:
    words = {"skip": "finished already, skipped", "resume": "going on where it stopped", "run": f"making a {step.node.info.kind}"}
    reads = f" from {', '.join(step.node.parents())}" if step.node.parents() and step.action != "skip" else ""
    logger.info("%s %s: %s%s", count, step.node.name, words[step.action], reads)


def _run_step(experiment: Experiment, step: Step, root: epath.Path, *, profile: bool) -> None:
    node, folder = step.node, root / step.node.name
    started = _now()
    manifest = Manifest(
        stage=node.name,
        kind=node.info.kind,
        status="running",
        fingerprint=step.fingerprint,
        seed=step.seed,
        config=serialize.canonical(node.stage),
        inputs=step.inputs,
        versions=artifacts.versions(),
        started=started,
    )
    artifacts.write_manifest(folder, manifest)
    context = StageContext(workdir=folder, name=node.name, seed=step.seed, mesh=experiment.mesh, profile=profile)
    try:
        result = node.stage.run(open_inputs(step, root), context) or StageResult()
    except BaseException as error:
        error.add_note(f"in stage {node.name!r}, {folder}")
        raise
    metrics = {name: float(value) for name, value in result.metrics.items()}
    finished = dataclasses.replace(manifest, status="finished", finished=_now(), tokens=int(result.tokens), metrics=metrics)
    artifacts.write_manifest(folder, finished)
    figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    logger.info("%s: finished  %s", node.name, figures)


def open_inputs(step: Step, root: epath.Path) -> dict[str, Artifact]:
    """The inputs of a step by dotted field path, all finished."""
    found = {}
    for path, entry in step.node.inputs.items():
        known = step.node.upstream[path].artifact
        if isinstance(entry.source, Ref):
            known = artifacts.open_finished(root / entry.source.stage)
        assert known is not None, "an External has had its artifact since the graph was resolved"
        found[path] = known
    return found


def _move_aside(root: epath.Path, name: str) -> None:
    folder = root / name
    if not folder.exists():
        return
    number = 1
    while (target := root / f"{name}.old-{number}").exists():
        number += 1
    folder.rename(target)
    logger.info("%s: the old results are kept as %s", name, target.name)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
