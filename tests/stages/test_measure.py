"""The stage that tests a claim: its result, and the parts that an interrupted run keeps."""

from pathlib import Path

import numpy as np
import pytest

from lmx.eval.claim_page import RESULT, read_results
from lmx.eval.claims import Claim, Finding, above
from lmx.pipeline import runner
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench, Measure, claim_report

CLAIM = Claim(id="X1", statement="it grows", source="ours", rule="> 0")
calls: list[str] = []


def measure(bench: Bench) -> Finding:
    """Two parts, the second of which may be interrupted."""
    first = bench.part("first", lambda: computed("first", bench))
    second = bench.part("second", lambda: computed("second", bench))
    grown = second["nested"]["values"] - first["nested"]["values"]
    return Finding(outcomes={}, checks=(above("growth", grown),), bed="none")


def computed(name: str, bench: Bench) -> dict:
    calls.append(name)
    if calls == ["first", "second"]:
        raise KeyboardInterrupt
    return {"nested": {"values": np.arange(len(bench.seeds)) + 10.0 * (name == "second") * (1 + np.arange(len(bench.seeds)) / 50)}}


def test_an_interrupted_measurement_goes_on_with_the_next_part(tmp_path: Path) -> None:
    calls.clear()
    experiment = Experiment(seed=0, stages={"claim": Measure(claim=CLAIM, by=measure)})
    with pytest.raises(KeyboardInterrupt):
        runner.run_experiment(experiment, tmp_path)
    assert not (tmp_path / "claim" / RESULT).exists()
    runner.run_experiment(experiment, tmp_path)
    assert calls == ["first", "second", "second"]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "X1.json").write_bytes((tmp_path / "claim" / RESULT).read_bytes())
    result = read_results(tmp_path / "results")["X1"]
    assert result.finding.passed
    assert result.finding.checks[0].values == pytest.approx((10.0, 10.2, 10.4))
    assert result.seeds == (0, 1, 2)
    assert result.claim == CLAIM


def test_the_page_is_written_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    folder = tmp_path / "of_mine"
    folder.mkdir()
    (folder / "claims.py").write_text(
        "from lmx.eval.claims import Claim\nTITLE = 'Mine'\n"
        "CLAIMS = (Claim(id='X1', statement='it grows', source='ours', rule='> 0'),)\n"
    )
    (folder / "results").mkdir()
    for _ in range(2):  # the module is known by then, and read again
        line = claim_report.write_page(folder, folder / "results", folder / "page.md")
        assert line.endswith("1 claims: 0 run, of which 0 passed and 0 did not; 1 not run")
    assert (folder / "page.md").read_text().startswith("# Mine\n")


def test_a_folder_without_claims_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "claims.py").write_text("CLAIMS = ()\n")
    with pytest.raises(ValueError, match="defines no CLAIMS"):
        claim_report.read_claims(tmp_path / "without")


def test_a_claim_wants_two_seeds() -> None:
    with pytest.raises(ValueError, match="two different seeds"):
        Measure(claim=CLAIM, by=measure, seeds=(1, 1))
