"""The report page: complete, valid, self-contained and safe."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmx.eval import report
from lmx.eval.curves import last_step, read_curves
from lmx.eval.markup import Markup, element
from lmx.eval.statistics import Estimate, wilson_interval, win_rate_interval
from lmx.eval.summary import (
    Answer,
    BitsPerByte,
    Duel,
    HeldOutText,
    RewardAccuracy,
    Sample,
    Saving,
    StageAccuracy,
    StageFigures,
    Summary,
    read_summary,
    write_summary,
)

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "<script>alert('x')</script> & \"quotes\" </td> \x00\x1b[0m \ud800"


def full_summary(text: str = "plain") -> Summary:
    tasks = {"addition": wilson_interval(31, 80), text: wilson_interval(7, 80)}
    return Summary(
        title=f"Quickstart {text}",
        command=f"lmx run {text}",
        stages=(
            StageFigures(
                name="teacher",
                kind="Pretrain",
                parameters=4_213_248,
                steps=611,
                tokens=4_915_200,
                seconds=131.4,
                tokens_per_second=41_234,
            ),
            StageFigures(name=f"student {text}", kind="Distill", inputs=("teacher",), parameters=1_913_111),
        ),
        text=HeldOutText(
            text_bytes=1_242_598,
            documents=73,
            entries=(
                BitsPerByte(name="teacher", kind="model", value=2.1132),
                BitsPerByte(name=text, kind="model", value=2.2437),
                BitsPerByte(name="unigram", kind="fitted", value=4.7431),
                BitsPerByte(name="order-2 Markov", kind="fitted", value=2.6593),
                BitsPerByte(name="xz -9e", kind="compressor", value=1.5784),
            ),
            savings=(Saving(name=text, over="labels", what="Distillation", saved=Estimate(0.0471, 0.0362, 0.0583, 911)),),
        ),
        accuracies=(
            StageAccuracy(stage="student", overall=wilson_interval(2, 160), tasks={}),
            StageAccuracy(stage="sft", overall=wilson_interval(38, 160), tasks=tasks),
        ),
        rewards=(RewardAccuracy(stage="reward_model", accuracy=wilson_interval(811, 1000)),),
        duels=(Duel(stage="dpo", opponent="sft", wins=131, ties=407, losses=62, rate=win_rate_interval(131, 407, 62)),),
        samples=(
            Sample(
                task="addition", prompt=f"What is 2+2? {text}", answers=(Answer(stage="sft", text=f"four {text}", correct=True),)
            ),
        ),
        environment={"jax": "0.10.2", "device": "cpu, 2 cores"},
        config=f"seed = 17 {text}",
    )


CURVES = {"teacher": {"training": [(10.0, 5.5), (20.0, 4.25), (30.0, 3.875)], "held-out": [(30.0, 3.9)]}}


class Checker(HTMLParser):
    """Raises when elements do not nest; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_balanced_html_with_one_root() -> None:
    page = report.render(full_summary(), CURVES)
    assert page.startswith("<!DOCTYPE html>\n<html")
    checker = parsed(page)
    assert [checker.tags.count(tag) for tag in ("html", "head", "body", "main", "h1")] == [1] * 5
    assert checker.tags.count("svg") == 5  # graph, losses, bits per byte, tasks, preferences


def test_every_figure_of_the_summary_is_on_the_page() -> None:
    text = " ".join(parsed(report.render(full_summary(), CURVES)).text)
    expected = ["4,213,248", "611", "4,915,200", "41,234", "2 min 11 s", "1,913,111"]  # stages
    expected += ["1,242,598", "73 held-out documents", "2.1132", "2.2437", "4.7431", "2.6593", "1.5784"]  # text
    expected += ["+0.0471", "[+0.0362, +0.0583]", "911 held-out rows"]
    expected += ["1.2% [0.3, 4.4]", "23.8% [17.8, 30.9]", "38.8% [28.8, 49.7]"]  # accuracies with Wilson intervals
    expected += ["81.1% [78.6, 83.4]", "131 won, 407 tied, 62 lost", "55.8%"]
    expected += ["training 3.875, held-out 3.900", "What is 2+2?", "four", "✓", "0.10.2", "seed = 17", "lmx run plain"]
    assert [figure for figure in expected if figure not in text] == []


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = report.render(full_summary(), CURVES)
    checker = parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "use"} & set(checker.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in checker.attributes}
    assert "http://" not in page and "https://" not in page
    assert "url(" not in page and "@import" not in page


def test_text_of_a_run_never_becomes_markup() -> None:
    page = report.render(full_summary(HOSTILE), {HOSTILE: {HOSTILE: [(1.0, 2.0), (2.0, 1.0)], "b": [(1.0, 1.0)]}})
    checker = parsed(page)
    assert "script" not in checker.tags
    assert "<script" not in page
    assert "\x00" not in page and "\x1b" not in page and "\ud800" not in page
    assert page.encode("utf-8")
    assert "<script>alert('x')</script> & \"quotes\" </td>" in " ".join(checker.text)


def test_a_stage_that_did_not_help_is_said_not_to_have_helped() -> None:
    summary = Summary(
        title="t",
        accuracies=(
            StageAccuracy(stage="sft", overall=wilson_interval(150, 200), tasks={}),
            StageAccuracy(stage="dpo", overall=wilson_interval(90, 200), tasks={}),
        ),
        duels=(Duel(stage="dpo", opponent="sft", wins=10, ties=20, losses=12, rate=win_rate_interval(10, 20, 12)),),
    )
    text = parsed(report.render(summary, {})).text
    assert text.count("did not help") == 1 and text.count("within noise") == 1
    assert "helped" not in text


def test_an_empty_summary_is_a_page_too() -> None:
    checker = parsed(report.render(Summary(title="Nothing yet"), {}))
    assert checker.text.count("Nothing yet") == 2  # the title and the headline
    assert "svg" not in checker.tags


def test_the_same_figures_give_the_same_page(tmp_path: Path) -> None:
    report.write_report(tmp_path / "report.html", full_summary(), CURVES)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.render(full_summary(), CURVES)


def test_a_summary_survives_its_file(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", full_summary())
    assert read_summary(tmp_path / "summary.json") == full_summary()


def test_a_damaged_summary_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"title": ')
    with pytest.raises(ValueError, match="summary.json .* is not valid JSON"):
        read_summary(path)
    write_summary(path, full_summary())
    data = json.loads(path.read_text())
    data["text"]["entries"][0]["value"] = "low"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not a summary: text.entries.0.value"):
        read_summary(path)


def test_curves_are_read_from_a_metrics_file_with_gaps_and_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "train/loss": 3.5}\n{"step": 20, "train/loss": null, "eval/loss": 3}\n{"step": 30, "train/loss": 2.5}\n{"ste'
    )
    curves = read_curves(path, {"train/loss": "training", "eval/loss": "held-out", "absent": "absent"})
    assert curves == {"training": [(10.0, 3.5), (30.0, 2.5)], "held-out": [(20.0, 3.0)]}
    assert last_step(path) == 30
    assert last_step(tmp_path / "absent.jsonl") is None


def test_elements_escape_text_and_attributes_but_not_markup() -> None:
    assert element("p", "a < b", element("b", "&"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>&amp;</b></p>'
    assert element("line", x1=1.50001, stroke_width=2, missing=None) == '<line x1="1.5" stroke-width="2"></line>'
    assert isinstance(element("br"), Markup) and element("br") == "<br>"
    assert html.unescape(element("i", "ü ✓")) == "<i>ü ✓</i>"
