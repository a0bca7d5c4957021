"""Claims can fail: rules over seeds, and the page that tells of them."""

import dataclasses
import math
from pathlib import Path

import pytest

from lmx.core import serialize, storage
from lmx.eval import claim_page
from lmx.eval.claims import Check, Claim, Finding, Result, above, at_least, at_most, below, by_arm, holds

CLAIM = Claim(id="X1", statement="a | b", source="Paper, section 1", rule="a < b")
OTHER = Claim(id="X2", statement="never tried", source="Paper, section 2", rule="c")


def result_of(*checks: Check, claim: Claim = CLAIM) -> Result:
    outcomes = {"loss": by_arm(("a", "b"), [(1.0, 1.5), (2.0, 2.5)]), "other": by_arm(("a", "b"), [(3.0, 3.0), (4.0, 4.0)])}
    finding = Finding(outcomes=outcomes, checks=checks, bed="a bed", note="why")
    return Result(
        claim=claim,
        finding=finding,
        seeds=(0, 1),
        command="lmx run x.py",
        commit="abc",
        seconds=3.2,
        machine="2 cores",
        date="today",
    )


def test_below_wants_every_seed_and_two_standard_errors() -> None:
    assert below("x", (-1.0, -1.1, -0.9)).passed
    assert not below("x", (-1.0, -1.1, 0.1)).passed  # one seed on the other side
    assert not below("x", (-0.1, -0.1, -2.0)).passed  # the mean, -0.73, is 1.2 standard errors away
    assert not above("x", (-1.0, -1.1, -0.9)).passed
    assert above("x", (1.0, 1.1, 0.9), bound=0.5).passed
    assert not above("x", (1.0, 1.1, 0.9), bound=0.95).passed


def test_the_standard_error_is_that_of_the_mean() -> None:
    check = below("x", (1.0, 2.0, 4.0))
    mean = 7 / 3
    variance = ((1 - mean) ** 2 + (2 - mean) ** 2 + (4 - mean) ** 2) / 2
    assert check.mean == pytest.approx(mean)
    assert check.standard_error == pytest.approx(math.sqrt(variance / 3))


def test_at_most_and_at_least_judge_the_mean() -> None:
    assert at_most("x", (0.0, 0.02), 0.01).passed
    assert not at_most("x", (0.0, 0.03), 0.01).passed
    assert at_least("x", (0.9, 1.0), 0.95).passed
    assert not at_least("x", (0.9, 0.98), 0.95).passed


def test_holds_wants_all() -> None:
    assert holds("x", (True, True)).passed
    assert not holds("x", (True, False)).passed


def test_what_is_not_finite_never_passes() -> None:
    assert not below("x", (-1.0, -math.inf)).passed
    assert not at_most("x", (math.nan, 0.0), 1.0).passed


def test_one_seed_is_too_few_for_a_standard_error() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        below("x", (1.0,))
    with pytest.raises(ValueError, match="no values"):
        at_most("x", (), 1.0)


def test_a_finding_passes_when_all_judged_checks_do() -> None:
    good, bad = at_most("x", (0.0,), 1.0), at_most("y", (2.0,), 1.0)
    assert result_of(good).finding.passed
    assert not result_of(good, bad).finding.passed
    assert result_of(good, dataclasses.replace(bad, judged=False)).finding.passed


def test_the_page_lists_what_failed_and_what_was_not_run() -> None:
    shown = claim_page.page([CLAIM, OTHER], {"X1": result_of(below("a - b", (1.0, 1.2)))}, "Title")
    assert "2 claims: 1 run, of which 0 passed and 1 did not; 1 not run." in shown
    assert "| [X1](#x1) | a \\| b | Paper, section 1 | a - b: 1.1 ± 0.1 (< 0) | **no** |" in shown
    assert "| X2 | never tried | Paper, section 2 | not run | |" in shown
    assert "| arm | loss | other |" in shown
    assert "| b | 2, 2.5 | 4, 4 |" in shown
    assert "`lmx run x.py`, seeds 0, 1, commit abc, 3 s" in shown
    assert "\nwhy\n" in shown


def test_a_result_of_an_unknown_claim_is_refused() -> None:
    with pytest.raises(ValueError, match="results of X1"):
        claim_page.page([OTHER], {"X1": result_of(holds("x", (True,)))}, "Title")


def test_results_come_back_from_their_files(tmp_path: Path) -> None:
    result = result_of(above("a", (1.0, 1.25)), holds("b", (True, True)))
    storage.write_json(tmp_path / "X1.json", serialize.to_json(result))
    assert claim_page.read_results(tmp_path) == {"X1": result}
    storage.write_json(tmp_path / "again.json", serialize.to_json(result))
    with pytest.raises(ValueError, match="second result of the claim X1"):
        claim_page.read_results(tmp_path)
    (tmp_path / "again.json").write_text('{"claim": 3}')
    with pytest.raises(ValueError, match=r"again\.json is not the result of a claim"):
        claim_page.read_results(tmp_path)
