"""The report of an experiment: one self-contained HTML page, written from the summary and the loss curves alone."""

import itertools
from collections.abc import Sequence

from etils import epath

from lmx.core import storage
from lmx.eval import chart, verdict
from lmx.eval.curves import Curves
from lmx.eval.markup import Markup, element
from lmx.eval.stage_drawing import stage_graph
from lmx.eval.statistics import Estimate
from lmx.eval.stylesheet import STYLE
from lmx.eval.summary import Answer, HeldOutText, Sample, StageAccuracy, StageFigures, Summary

_BASELINE_TONE = 4
_MARKS = {verdict.Status.HELPED: "helped", verdict.Status.NOISE: "noise", verdict.Status.HURT: "hurt"}  # status -> class


def write_report(path: epath.PathLike, summary: Summary, curves: Curves) -> None:
    """Renders the page and writes it in one piece."""
    storage.write_text(path, render(summary, curves))


def render(summary: Summary, curves: Curves) -> str:
    """HTML of the report; parts that the summary does not have are left out.

    Args:
      summary: figures of the run.
      curves: stage -> line -> points, losses in nats; drawn in the order given.

    Returns:
      A whole HTML document without a single reference to anything outside it.
    """
    sections = [
        _verdicts(summary),
        _pipeline(summary.stages),
        _curves(curves),
        _text(summary.text) if summary.text else Markup(""),
        _accuracies(summary.accuracies),
        _preferences(summary),
        _samples(summary.samples),
        _provenance(summary),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", summary.title),
        element("style", Markup(STYLE)),
    )
    body = element("body", element("main", _header(summary), *sections))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _header(summary: Summary) -> Markup:
    seconds = sum(stage.seconds or 0.0 for stage in summary.stages)
    tokens = sum(stage.tokens or 0 for stage in summary.stages)
    facts = [f"{len(summary.stages)} stages"] if summary.stages else []
    facts += [f"{tokens:,} training tokens"] if tokens else []
    facts += [duration(seconds)] if seconds else []
    facts += [summary.environment[name] for name in ("device",) if name in summary.environment]
    lead = element("p", " · ".join(facts), class_="lead") if facts else Markup("")
    return element("header", element("h1", summary.title), lead, _cards(summary))


def _cards(summary: Summary) -> Markup:
    cards = []
    models = [entry for entry in summary.text.entries if entry.kind == "model"] if summary.text else []
    if summary.text and models:
        best = min(models, key=lambda entry: entry.value)
        fitted = [entry for entry in summary.text.entries if entry.kind == "fitted"]
        bar = min(fitted, key=lambda entry: entry.value, default=None)
        beside = f"{best.name}; {bar.name} {bar.value:.2f}" if bar else best.name
        cards.append(("Bits per byte, held-out", f"{best.value:.2f}", beside))
    if summary.accuracies:
        first, last = summary.accuracies[0], summary.accuracies[-1]
        before = f"; {first.stage} {verdict.percent(first.overall.value)}" if len(summary.accuracies) > 1 else ""
        cards.append(("Exact match", verdict.percent(last.overall.value), f"{last.stage}{before}"))
    for reward in summary.rewards:
        cards.append(("Preference accuracy", verdict.percent(reward.accuracy.value), f"{reward.stage}, {_range(reward.accuracy)}"))
    for duel in summary.duels:
        cards.append(("Win rate", verdict.percent(duel.rate.value), f"{duel.stage} over {duel.opponent}, {_range(duel.rate)}"))
    blocks = [
        element("div", element("span", name, class_="name"), element("b", value), element("span", note), class_="card")
        for name, value, note in cards
    ]
    return element("div", *blocks, class_="cards") if blocks else Markup("")


def _verdicts(summary: Summary) -> Markup:
    items = []
    for found in verdict.verdicts(summary):
        sentence = element("p", element("b", found.subject), " ", found.sentence)
        items.append(element("li", element("span", found.word, class_=f"mark {_MARKS[found.status]}"), sentence))
    if not items:
        return Markup("")
    return _section(
        "What helped, and what did not",
        "A stage helped, or did not, only when the whole 95% interval lies on that side; otherwise it is within noise.",
        element("ul", *items, class_="verdicts"),
    )


def _pipeline(stages: Sequence[StageFigures]) -> Markup:
    if not stages:
        return Markup("")
    columns = ["Stage", "Kind", "Reads", "Parameters", "Steps", "Tokens", "Tokens/s", "Time"]
    rows = []
    for stage in stages:
        speed = f"{stage.tokens_per_second:,.0f}" if stage.tokens_per_second is not None else ""
        time = duration(stage.seconds) if stage.seconds is not None else ""
        numbers = [_count(stage.parameters), _count(stage.steps), _count(stage.tokens), speed, time]
        rows.append([stage.name, stage.kind, ", ".join(stage.inputs), *numbers])
    graph = element("div", stage_graph(stages), class_="scroll")
    return _section("The pipeline", "", graph, table(columns, rows, numbers=range(3, 8)))


def _curves(curves: Curves) -> Markup:
    figures = []
    for stage, lines in curves.items():
        series = [chart.Series(name, points, tone) for tone, (name, points) in enumerate(lines.items())]
        plot = chart.line_chart(series, x_label="step", y_label=f"loss of {stage}")
        last = ", ".join(f"{name} {points[-1][1]:.3f}" for name, points in lines.items() if points)
        figures.append(element("figure", element("h3", stage), plot, element("p", f"At the end: {last}.", class_="note")))
    if not figures:
        return Markup("")
    note = "Each point is the mean of the steps since the last; the scales differ from plot to plot, for so do the losses."
    return _section("Loss curves", note, element("div", *figures, class_="plots"))


def _text(text: HeldOutText) -> Markup:
    entries = sorted(text.entries, key=lambda entry: entry.value)
    tones = {"model": 0, "fitted": _BASELINE_TONE, "compressor": _BASELINE_TONE}
    bars = [chart.Mark(entry.name, entry.value, f"{entry.value:.3f}", tone=tones[entry.kind]) for entry in entries]
    what = {
        "model": "model trained here",
        "fitted": "baseline fitted on the training text",
        "compressor": "compressor that saw the held-out text alone",
    }
    note = (
        f"Bits that each model or baseline spends on a byte, over all {text.text_bytes:,} bytes of {text.documents:,} held-out "
        "documents; no end-of-text token counts. Lower is better. Models in colour, baselines in grey."
    )
    if any(entry.kind == "compressor" for entry in entries):
        note += " A compressor adapts as it goes and copies from any earlier document; a model sees one document at a time."
    rows = [[entry.name, what[entry.kind], f"{entry.value:.4f}"] for entry in entries]
    parts = [chart.bar_chart(bars, label="held-out bits per byte"), table(["", "What it is", "Bits per byte"], rows, numbers=[2])]
    if text.savings:
        savings = [
            [
                saving.what,
                saving.name,
                saving.over,
                f"{saving.saved.value:+.4f}",
                f"[{saving.saved.low:+.4f}, {saving.saved.high:+.4f}]",
            ]
            for saving in text.savings
        ]
        parts.append(table(["Comparison", "Model", "Against", "Bits per byte saved", "95% interval"], savings, numbers=[3, 4]))
    return _section("Held-out text", note, *parts)


def _accuracies(accuracies: Sequence[StageAccuracy]) -> Markup:
    if not accuracies:
        return Markup("")
    tones = {accuracy.stage: tone for tone, accuracy in enumerate(accuracies)}
    tasks = sorted(set(itertools.chain.from_iterable(accuracy.tasks for accuracy in accuracies)))
    groups = [("all tasks", [_mark(a.stage, a.overall, tones[a.stage]) for a in accuracies])]
    groups += [(task, [_mark(a.stage, a.tasks[task], tones[a.stage]) for a in accuracies if task in a.tasks]) for task in tasks]
    rows = []
    for name in ("all tasks", *tasks):
        found = [a.overall if name == "all tasks" else a.tasks.get(name) for a in accuracies]
        prompts = max(estimate.count for estimate in found if estimate is not None)
        rows.append(
            [name, f"{prompts:,}", *(verdict.percent_interval(estimate) if estimate is not None else "" for estimate in found)]
        )
    columns = ["Task", "Prompts", *(accuracy.stage for accuracy in accuracies)]
    return _section(
        "Tasks",
        "Held-out prompts answered exactly right, judged by a program, after each stage. Bars are 95% Wilson intervals.",
        chart.legend([(name, tone) for name, tone in tones.items()]),
        chart.interval_chart(groups, label="exact-match accuracy by task and stage"),
        table(columns, rows, numbers=range(1, len(columns))),
    )


def _preferences(summary: Summary) -> Markup:
    groups = [(f"{r.stage} ranks as labelled", [_mark(r.stage, r.accuracy, 3)]) for r in summary.rewards]
    groups += [(f"{duel.stage} over {duel.opponent}", [_mark(duel.stage, duel.rate, 2)]) for duel in summary.duels]
    if not groups:
        return Markup("")
    rows = [
        ["Preference accuracy", r.stage, f"{r.accuracy.count:,} pairs", verdict.percent_interval(r.accuracy)]
        for r in summary.rewards
    ]
    for duel in summary.duels:
        counts = f"{duel.wins:,} won, {duel.ties:,} tied, {duel.losses:,} lost"
        rows.append(["Win rate", f"{duel.stage} over {duel.opponent}", counts, verdict.percent_interval(duel.rate)])
    return _section(
        "Preferences",
        "The reward model on held-out pairs, and policies against each other on held-out prompts, the verifier being the judge. "
        "Ties count half; the dashed line is chance.",
        chart.interval_chart(groups, label="preference accuracy and win rate", reference=0.5),
        table(["Measure", "Model", "Observations", "Value, 95% interval"], rows, numbers=[3]),
    )


def _samples(samples: Sequence[Sample]) -> Markup:
    if not samples:
        return Markup("")
    stages = list(dict.fromkeys(answer.stage for sample in samples for answer in sample.answers))
    rows = []
    for sample in samples:
        given = {answer.stage: answer for answer in sample.answers}
        cells = [element("td", element("span", sample.task, class_="task"), sample.prompt)]
        cells += [_answer(given.get(stage)) for stage in stages]
        rows.append(element("tr", *cells))
    header = element("tr", element("th", "Prompt"), *(element("th", stage) for stage in stages))
    body = element("table", element("thead", header), element("tbody", *rows), class_="samples")
    note = "Held-out prompts and what each stage answered; ✓ and ✗ are the verifier's."
    return _section("Samples", note, element("div", body, class_="scroll"))


def _answer(answer: Answer | None) -> Markup:
    if answer is None:
        return element("td")
    sign, class_ = {True: ("✓ ", "right"), False: ("✗ ", "wrong"), None: ("", None)}[answer.correct]
    return element("td", element("span", sign, class_=class_), answer.text)


def _provenance(summary: Summary) -> Markup:
    parts = []
    if summary.command:
        parts += [element("p", "Run it again:"), element("pre", summary.command)]
    if summary.environment:
        parts.append(table(["Environment", ""], [[name, value] for name, value in summary.environment.items()]))
    if summary.config:
        parts.append(element("details", element("summary", "Resolved configuration"), element("pre", summary.config)))
    return _section("How it was made", "", *parts) if parts else Markup("")


def _section(title: str, note: str, *parts: str) -> Markup:
    return element("section", element("h2", title), element("p", note, class_="note") if note else Markup(""), *parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> Markup:
    """A table of text cells; columns in `numbers` are set flush right."""

    def line(tag: str, cells: Sequence[str]) -> Markup:
        return element("tr", *(element(tag, cell, class_="number" if i in numbers else None) for i, cell in enumerate(cells)))

    body = element("tbody", *(line("td", row) for row in rows))
    return element("div", element("table", element("thead", line("th", columns)), body), class_="scroll")


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def _mark(name: str, estimate: Estimate, tone: int) -> chart.Mark:
    return chart.Mark(name, estimate.value, verdict.percent(estimate.value), estimate.low, estimate.high, tone)


def _range(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}%"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
