"""An experiment's training stages as a table: tokens, lengths, batches, rates, mixtures, and where each figure comes from."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx.data.ramp import Phase
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig, MoEConfig
from lmx.optim import Constant, LinearFrom, Part, RMSProp, WarmupCosine, WarmupLinear, WarmupStableDecay
from lmx.pipeline.graph import Graph, Node
from lmx.stages.distill import Distill
from lmx.stages.distill_stored import DistillStored
from lmx.stages.lengthen import Lengthen
from lmx.stages.training import Training
from lmx.stages.upcycle import Upcycle

HEADER = ("stage", "does", "tokens", "length", "rows", "tokens a batch", "steps", "RoPE base")
FIGURES = ("tokens", "length", "batch", "rate", "RoPE base", "mixture")
"""What the table shows of every training stage; an experiment's `figures` should tell where each comes from."""


def stage_table(graph: Graph, figures: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The lines of the table; none when no stage trains.

    Args:
      graph: the experiment's stages.
      figures: stage -> figure -> where it comes from, as in `Experiment`.
    """
    nodes = [node for node in graph.nodes.values() if trains(node) or node.name in figures]
    rows = [row for node in nodes for row in _rows(node)]
    if not rows:
        return []
    widths = [max(len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER))]
    lines = [_line(HEADER, widths), *(_line(row, widths) for row in rows)]
    for node in nodes:
        lines += ["", node.name, *(f"  {label:<11}{text}" for label, text in _details(node, figures.get(node.name, {})))]
    return lines


def trains(node: Node) -> bool:
    """Whether a stage is trained on text."""
    return isinstance(getattr(node.stage, "training", None), Training) and isinstance(getattr(node.stage, "data", None), PackedText)


def quantity(value: float) -> str:
    """A count in few digits: 6.3T, 251.7M, 4,096."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:,.0f}"


def rate(schedule: Any) -> str:
    """A learning-rate schedule in words."""
    if isinstance(schedule, Constant):
        return f"constant {schedule.value:.3g}"
    if isinstance(schedule, Part):
        return f"{rate(schedule.schedule)}, steps {schedule.start:,} and on of {schedule.total:,}"
    if isinstance(schedule, LinearFrom):
        return f"linear to {schedule.end:.3g} from where this stopped: {rate(schedule.before)}"
    if isinstance(schedule, WarmupCosine | WarmupLinear | WarmupStableDecay):
        shape = {WarmupCosine: "cosine", WarmupLinear: "linear", WarmupStableDecay: "constant, then linear"}[type(schedule)]
        return (
            f"warm-up {schedule.warmup_steps:,} steps to {schedule.peak:.3g}, {shape} to {schedule.end_ratio * schedule.peak:.3g}"
        )
    return type(schedule).__name__


def mixture(data: PackedText) -> list[str]:
    """Shares of the components in percent, a line a point of the schedule."""
    if data.mix is None:
        names = [part.name or str(number) for number, part in enumerate(data.components)]
        return [_shares(dict(zip(names, (part.weight for part in data.components), strict=True)))]
    return [f"from {quantity(point.from_tokens)}: {_shares(point.weights)}" for point in data.mix.points]


def _shares(weights: Mapping[str, float]) -> str:
    total = sum(weights.values())
    return ", ".join(f"{name} {100 * weight / total:.3g}%" for name, weight in weights.items() if weight)


def _rows(node: Node) -> Iterator[tuple[str, ...]]:
    stage, architecture = node.stage, node.info.architecture
    base = "" if architecture is None else _rope(architecture)
    for number, (phase, steps) in enumerate(_phases(node)):
        counts = (quantity(steps * phase.batch_tokens), f"{phase.length:,}", f"{phase.batch_size:,}", quantity(phase.batch_tokens))
        yield ("" if number else node.name, "" if number else _does(stage), *counts, f"{steps:,}", "" if number else base)
    if not trains(node):
        yield (node.name, _does(stage), "", "", "", "", "", base)


def _phases(node: Node) -> list[tuple[Phase, int]]:
    """Shapes of the batches with their steps."""
    if not trains(node):
        return []
    stage: Any = node.stage
    training: Training = stage.training
    if isinstance(stage, Lengthen):
        trainings = [stage.training_at(length) for length in stage.lengths]
        return [part for one in trainings for part in one.shapes.parts(one.loop.steps)]
    return training.shapes.parts(training.loop.steps)


def _does(stage: Any) -> str:
    if isinstance(stage, Distill | DistillStored):
        target: Any = stage.target
        fields = ", ".join(f"{field.name} {getattr(target, field.name):g}" for field in dataclasses.fields(target))
        return f"{type(stage).__name__}, {type(target).__name__} {fields}".rstrip()
    return type(stage).__name__


def _rope(model: DecoderConfig) -> str:
    return " / ".join(dict.fromkeys(f"{block.attention.rope.theta:,.0f}" for block in model.layer_pattern))


def _details(node: Node, figures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(label, text) lines under a stage's name."""
    stage: Any = node.stage
    if trains(node):
        optimizer = stage.training.optimizer
        yield "optimizer", f"{_optimizer(optimizer)}; {rate(optimizer.schedule)}"
        yield from zip(itertools.chain(["mixture"], itertools.repeat("")), mixture(stage.data), strict=False)
        if stage.training.average is not None:
            yield "average", str(stage.training.average)
    if isinstance(stage, Lengthen):
        opens = f"short loss within {stage.gate.short_tolerance:g} nats of before, {100 * stage.gate.accuracy:g}% of the needles"
        yield "gate", f"{opens}; when shut: {stage.when_shut}"
    if isinstance(stage, Upcycle):
        experts = next(block.ffn for block in stage.target.layer_pattern if isinstance(block.ffn, MoEConfig))
        yield "experts", f"{experts.experts_per_token} of {experts.num_experts}, width {experts.expert.ffn_dim:,}; {stage.settings}"
    yield from _origins(figures)


def _origins(figures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What comes from where: figures of one origin on one line, choices with their reasons a line each."""
    plain: dict[str, list[str]] = {}
    for name, origin in figures.items():
        if ": " not in origin:
            plain.setdefault(origin, []).append(name)
    for origin, names in plain.items():
        yield "source", f"{origin}: {', '.join(names)}"
    for name, origin in figures.items():
        if ": " in origin:
            kind, _, why = origin.partition(": ")
            yield "source", f"{kind}: {name} ({why})"


def _optimizer(optimizer: Any) -> str:
    name = type(optimizer).__name__
    settings = [f"{field} {getattr(optimizer, field):g}" for field in ("b1", "b2", "weight_decay") if hasattr(optimizer, field)]
    mup = getattr(optimizer, "mup", None)
    if mup is not None:
        settings.append(f"muP-simple from width {mup.base_width}")
    if isinstance(optimizer, RMSProp) and optimizer.update_clip is not None:
        settings.append(f"updates clipped at {optimizer.update_clip:g}")
    return f"{name} {', '.join(settings)}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
    return "  ".join(cells).rstrip()
