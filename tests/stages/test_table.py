"""The stage table of `lmx show`."""

import dataclasses
from pathlib import Path

import pytest

from configs.recipes import afm, gemma2, llama31
from lmx import cli
from lmx.optim import Constant, LinearFrom, Part, WarmupCosine, WarmupStableDecay
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.graph import resolve
from lmx.stages.table import mixture, quantity, rate, stage_table

ROOT = Path(__file__).parents[2]


def lines_of(experiment: Experiment) -> list[str]:
    return stage_table(resolve(experiment), experiment.figures)


def test_quantities_are_short_and_small_ones_whole() -> None:
    assert [quantity(value) for value in (6.3e12, 251_658_240, 188e9, 4_096, 999_999)] == [
        "6.3T",
        "251.7M",
        "188B",
        "4,096",
        "999,999",
    ]


def test_schedules_are_told_in_words() -> None:
    cosine = WarmupCosine(peak=8e-5, warmup_steps=8_000, end_ratio=0.01)
    assert rate(cosine) == "warm-up 8,000 steps to 8e-05, cosine to 8e-07"
    assert rate(Part(schedule=cosine, start=5, total=1_200_000)) == f"{rate(cosine)}, steps 5 and on of 1,200,000"
    assert rate(LinearFrom(before=Constant(value=0.1), before_steps=1)) == "linear to 0 from where this stopped: constant 0.1"
    assert rate(WarmupStableDecay(peak=1.0, warmup_steps=1, decay_steps=2)) == "warm-up 1 steps to 1, constant, then linear to 0"


def test_every_shape_of_a_ramp_and_every_length_has_a_row() -> None:
    lines = lines_of(llama31.pretraining(llama31.mini()).experiment("mini"))
    rows = [line.split() for line in lines[1 : lines.index("")] if not line.startswith("tokenizer")]
    assert [row[0] for row in rows if not row[0][0].isdigit()] == ["main", "lengthened", "annealed"]
    lengths = [row[3] if not row[0][0].isdigit() else row[1] for row in rows]
    assert lengths == ["64", "128", "128", "184", "256", "360", "512", "728", "1,024", "1,024"]
    assert any("gate" in line and "90% of the needles" in line for line in lines)


def test_a_changing_mixture_has_a_line_a_mark() -> None:
    found = mixture(llama31.main_mixture(llama31.mini()))
    assert len(found) == 3 and found[0].startswith("from 0: web 38.4%") and found[-1].startswith("from 1.92M: web 24%")


def test_objective_optimizer_and_origins_are_told() -> None:
    text = "\n".join(lines_of(afm.pretraining(afm.mini()).experiment("mini")))
    assert "Distill, Top1Mix weight 0.9" in text
    assert "RMSProp b1 0.95, b2 0.95, weight_decay 0.000316, muP-simple from width 64, updates clipped at 1" in text
    assert "choice: mixture (shares are not published)" in text and "report, scaled: tokens" in text


def test_an_experiment_that_does_not_train_on_text_has_no_table() -> None:
    recipe = gemma2.pretraining(gemma2.mini())
    only = Experiment(seed=0, stages={"tokenizer": recipe.stages["tokenizer"]})
    assert lines_of(only) == []


def test_figures_of_a_stage_that_is_not_there_are_refused() -> None:
    experiment = gemma2.pretraining(gemma2.mini()).experiment("mini")
    with pytest.raises(ValueError, match="figures tells of studnt, but the stages are"):
        dataclasses.replace(experiment, figures={"studnt": {}})


def test_show_prints_the_table_between_graph_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(ROOT / "experiments" / "llama31" / "pretrain_405b.py")]) == 0
    text = capsys.readouterr().out
    graph, table, config = (text.index(part) for part in ("└─ main", "RoPE base", "\nExperiment\n"))
    assert graph < table < config
    assert "figures: {}" in text  # told in the table, not once more in the config
