"""What `lmx data` shows: the batches of a stage, exactly as it will train on them."""

import itertools
import shlex
import tempfile
from collections.abc import Iterator, Mapping

from etils import epath

from lmx.core import storage
from lmx.pipeline import artifact as artifacts
from lmx.pipeline import graph as graphs
from lmx.pipeline import render, runner, schedule
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.graph import Graph, Node
from lmx.pipeline.stage import HasBatches, Ref, StageContext

_LIGHT = ("tokenizer", "dataset")  # kinds that are made in seconds, so a preview may make them for itself


class _Inputs(Mapping[str, Artifact]):
    """The finished inputs of a stage; asking for another one says which command makes it."""

    def __init__(self, node: Node, found: Mapping[str, Artifact], command: str) -> None:
        self._node, self._found, self._command = node, found, command

    def __getitem__(self, path: str) -> Artifact:
        if path in self._found:
            return self._found[path]
        source = self._node.inputs[path].source  # KeyError for what isn't an input
        missing = source.stage if isinstance(source, Ref) else source.path
        raise ValueError(
            f"the batches of {self._node.name!r} need the stage {missing!r}, which is not finished; "
            f"run `{self._command} --only {shlex.quote(missing)}` first and give the same --workdir here"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._node.inputs)

    def __len__(self) -> int:
        return len(self._node.inputs)


def preview(
    experiment: Experiment,
    name: str | None = None,
    workdir: epath.PathLike | None = None,
    *,
    batches: int = 1,
    rows: int = 2,
    characters: int = 600,
    command: str = "lmx run FILE --workdir DIR",
) -> Iterator[str]:
    """Lines that show the first batches of a stage, decoded, with document boundaries and loss masks.

    Args:
      experiment: the experiment.
      name: the stage; None = the first that has batches.
      workdir: where finished inputs lie; None = tokenizers and datasets that it needs are made in a temporary folder.
      batches: batches to show.
      rows: rows of a batch to show.
      characters: characters of a document to show.
      command: how to run the experiment, for the sentence about a missing input.

    Raises:
      ValueError: when the stage has no batches, or needs an input that isn't finished.
    """
    graph = graphs.resolve(experiment)
    node = _choose(graph, name)
    with tempfile.TemporaryDirectory(prefix="lmx-data-") as temporary:
        root = storage.as_path(workdir if workdir is not None else temporary)
        if workdir is None:
            _make_light_inputs(experiment, graph, node, root)
        inputs = _finished_inputs(experiment, graph, node, root, command)
        seed = schedule.stage_seed(experiment.seed, node.name)
        scratch = storage.as_path(temporary) / ".preview"
        scratch.mkdir()
        context = StageContext(workdir=scratch, name=node.name, seed=seed, mesh=experiment.mesh)
        assert isinstance(node.stage, HasBatches)
        iterator, tokenizer = node.stage.batches(inputs, context)
        yield f"stage {node.name}. {render.LEGEND}"
        for number, batch in enumerate(itertools.islice(iterator, batches)):
            yield f"batch {number}"
            yield from render.batch_lines(batch, tokenizer, max_rows=rows, max_characters=characters)


def _choose(graph: Graph, name: str | None) -> Node:
    having = [node for node in graph.nodes.values() if isinstance(node.stage, HasBatches)]
    node = graph.node(name) if name is not None else next(iter(having), None)
    if node is None or node not in having:
        listed = ", ".join(other.name for other in having) or "none of this experiment's"
        raise ValueError(f"the stage {name!r} has no batches to show; stages that have: {listed}")
    return node


def _make_light_inputs(experiment: Experiment, graph: Graph, node: Node, root: epath.Path) -> None:
    for other in graph.before(node.name):
        chain = (*graph.before(other), other)
        if all(graph.node(name).info.kind in _LIGHT for name in chain):
            runner.run_experiment(experiment, root, only=other)


def _finished_inputs(experiment: Experiment, graph: Graph, node: Node, root: epath.Path, command: str) -> _Inputs:
    steps = schedule.compare(experiment, graph, root, graph.before(node.name))
    found: dict[str, Artifact] = {}
    for path, entry in node.inputs.items():
        artifact = node.upstream[path].artifact
        if isinstance(entry.source, Ref) and steps[entry.source.stage].action == "skip":
            artifact = artifacts.open_finished(root / entry.source.stage)
        if artifact is not None:
            found[path] = artifact
    return _Inputs(node, found, command)
