"""Verdicts follow from the figures alone."""

import pytest

from lmx.eval import verdict
from lmx.eval.statistics import Estimate, wilson_interval, win_rate_interval
from lmx.eval.summary import BitsPerByte, Duel, HeldOutText, RewardAccuracy, Saving, StageAccuracy, Summary
from lmx.eval.verdict import Status


def only(summary: Summary) -> verdict.Verdict:
    (found,) = verdict.verdicts(summary)
    return found


def text(*entries: BitsPerByte, savings: tuple[Saving, ...] = ()) -> Summary:
    return Summary(title="t", text=HeldOutText(text_bytes=1000, documents=3, entries=entries, savings=savings))


def accuracies(before: int, after: int, tasks: dict[str, tuple[int, int]] | None = None) -> Summary:
    by_task = tasks or {}
    first = StageAccuracy(
        stage="base",
        overall=wilson_interval(before, 200),
        tasks={name: wilson_interval(b, 100) for name, (b, _) in by_task.items()},
    )
    second = StageAccuracy(
        stage="sft", overall=wilson_interval(after, 200), tasks={name: wilson_interval(a, 100) for name, (_, a) in by_task.items()}
    )
    return Summary(title="t", accuracies=(first, second))


MARKOV = BitsPerByte(name="order-2 Markov", kind="fitted", value=2.6)
UNIGRAM = BitsPerByte(name="unigram", kind="fitted", value=4.7)
XZ = BitsPerByte(name="xz -9e", kind="compressor", value=1.6)


@pytest.mark.parametrize(("value", "status"), [(2.5, Status.HELPED), (2.7, Status.HURT)])
def test_a_model_is_held_against_the_strongest_fitted_baseline(value: float, status: Status) -> None:
    found = only(text(BitsPerByte(name="student", kind="model", value=value), UNIGRAM, MARKOV, XZ))
    assert found.status is status
    assert f"0.100 {'fewer' if value < 2.6 else 'more'} than order-2 Markov" in found.sentence
    assert "more than xz -9e" in found.sentence
    assert "unigram" not in found.sentence


@pytest.mark.parametrize(
    ("low", "value", "high", "status"),
    [(0.01, 0.02, 0.03, Status.HELPED), (-0.01, 0.01, 0.03, Status.NOISE), (-0.05, -0.03, -0.01, Status.HURT)],
)
def test_distillation_helped_only_when_its_interval_says_so(low: float, value: float, high: float, status: Status) -> None:
    saving = Saving(name="student", over="labels", what="Distillation", saved=Estimate(value, low, high, 40))
    found = only(text(savings=(saving,)))
    assert found.status is status
    assert ("loses" if value < 0 else "saves") in found.sentence


@pytest.mark.parametrize(
    ("before", "after", "status"), [(10, 120, Status.HELPED), (100, 105, Status.NOISE), (120, 20, Status.HURT)]
)
def test_a_stage_is_compared_with_the_one_before_it(before: int, after: int, status: Status) -> None:
    found = only(accuracies(before, after))
    assert (found.subject, found.status) == ("sft", status)
    assert f"{(after - before) / 2:+.1f} points" in found.sentence


def test_tasks_on_which_a_helpful_stage_is_worse_are_named() -> None:
    found = only(accuracies(100, 150, {"add": (10, 90), "sort": (90, 60)}))
    assert found.status is Status.HELPED
    assert "worse than base on sort." in found.sentence


@pytest.mark.parametrize(("right", "word"), [(90, "above chance"), (52, "within noise"), (20, "below chance")])
def test_a_reward_model_is_held_against_chance(right: int, word: str) -> None:
    assert only(Summary(title="t", rewards=(RewardAccuracy(stage="rm", accuracy=wilson_interval(right, 100)),))).word == word


@pytest.mark.parametrize(
    ("wins", "losses", "status"), [(60, 20, Status.HELPED), (31, 29, Status.NOISE), (0, 0, Status.NOISE), (10, 60, Status.HURT)]
)
def test_a_duel_is_held_against_one_half(wins: int, losses: int, status: Status) -> None:
    ties = 100 - wins - losses
    duel = Duel(stage="dpo", opponent="sft", wins=wins, ties=ties, losses=losses, rate=win_rate_interval(wins, ties, losses))
    assert only(Summary(title="t", duels=(duel,))).status is status
