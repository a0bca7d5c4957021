"""What `lmx show` prints: the stage graph with parameters, tokens and FLOPs, and the resolved config. Touches no device."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from lmx.core import config as configs
from lmx.model import accounting
from lmx.pipeline import graph as graphs
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.graph import Graph, Node
from lmx.pipeline.stage import External, HasWorkload

_HEADER = ("stage", "makes", "parameters", "steps", "tokens", "FLOPs", "also reads")
_NUMERIC = {"parameters", "steps", "tokens", "FLOPs"}


def describe(experiment: Experiment, details: Callable[[Graph, Experiment], Sequence[str]] | None = None) -> str:
    """The experiment for people; raises ValueError when it can't be right, as a run would.

    Args:
      experiment: what to describe.
      details: further lines between graph and config, given by what knows the stages.
    """
    graph = graphs.resolve(experiment)
    title = experiment.name or "experiment"
    count = len(graph.nodes)
    head = f"{title}: {count} stage{'s' if count != 1 else ''}, seed {experiment.seed}"
    lines = [] if details is None else details(graph, experiment)
    config = configs.to_text(dataclasses.replace(experiment, figures={}) if lines else experiment)
    return "\n\n".join([head, "\n".join(graph_lines(graph)), *(["\n".join(lines)] if lines else []), config])


def graph_lines(graph: Graph) -> list[str]:
    """The stages as a tree under their latest input, one line each, with what they cost; the last line has the totals."""
    rows = [_HEADER, *(_row(node, prefix, parent) for prefix, node, parent in _tree(graph))]
    costs = [node.stage.workload(node.upstream) for node in graph.nodes.values() if isinstance(node.stage, HasWorkload)]
    if costs:
        steps, tokens, flops = (sum(getattr(cost, name) for cost in costs) for name in ("steps", "tokens", "flops"))
        rows.append(("total", "", "", f"{steps:,}", f"{tokens:,}", f"{flops:.3g}", ""))
    return _table(rows)


def _tree(graph: Graph) -> Iterator[tuple[str, Node, str | None]]:
    """(drawn prefix, stage, the stage it hangs under), depth first."""
    order = list(graph.nodes)
    under = {name: max(node.parents(), key=order.index, default=None) for name, node in graph.nodes.items()}

    def walk(parent: str | None, stem: str) -> Iterator[tuple[str, Node, str | None]]:
        children = [name for name in order if under[name] == parent]
        for name in children:
            last = name == children[-1]
            branch = "" if parent is None else "└─ " if last else "├─ "
            yield stem + branch, graph.nodes[name], parent
            yield from walk(name, stem + ("" if parent is None else "   " if last else "│  "))

    return walk(None, "")


def _row(node: Node, prefix: str, parent: str | None) -> tuple[str, ...]:
    architecture = node.info.architecture
    parameters = "" if architecture is None else _parameters(accounting.count_parameters(architecture))
    steps = tokens = flops = ""
    if isinstance(node.stage, HasWorkload):
        cost = node.stage.workload(node.upstream)
        steps, tokens, flops = f"{cost.steps:,}", f"{cost.tokens:,}", f"{cost.flops:.3g}"
    external = [entry.source.path for entry in node.inputs.values() if isinstance(entry.source, External)]
    others = ", ".join([*(name for name in node.parents() if name != parent), *external])
    return prefix + node.name, node.info.kind, parameters, steps, tokens, flops, others


def _parameters(count: accounting.ParameterCount) -> str:
    return f"{count.total:,}" if count.active == count.total else f"{count.total:,} ({count.active:,} active)"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in aligned columns, the first being the header; columns without any entry are left out."""
    kept = [i for i in range(len(_HEADER)) if any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]

    def line(row: tuple[str, ...]) -> str:
        cells = (row[i].rjust(w) if _HEADER[i] in _NUMERIC else row[i].ljust(w) for i, w in zip(kept, widths, strict=True))
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]
