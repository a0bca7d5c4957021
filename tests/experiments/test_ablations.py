"""The ablations: each loads and says which claim it tests, and the committed results and their page belong together."""

from pathlib import Path

import pytest

from experiments.ablations import claims
from lmx.core.fingerprint import fingerprint
from lmx.eval import claim_page
from lmx.pipeline.experiment import load_experiment
from lmx.pipeline.graph import resolve
from lmx.stages import Measure

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "ablations"
FILES = [path for path in sorted(FOLDER.glob("*.py")) if "def get_config" in path.read_text()]
MUST_HAVE_RUN = {"M": (1, 2, 4, 5, 6, 7, 8, 10, 12, 13), "G": (1, 2, 5, 8, 9), "A": (1, 2, 5, 8, 10, 13, 15)}


def claims_of(file: Path) -> list[str]:
    stages = load_experiment(file).stages.values()
    return [stage.claim.id for stage in stages if isinstance(stage, Measure)]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_each_file_tests_claims_and_says_which(file: Path) -> None:
    experiment = load_experiment(file)
    resolve(experiment)
    assert fingerprint(experiment.stages)
    docstring = file.read_text().split('"""')[1]
    assert f"lmx run {file.relative_to(ROOT)}" in docstring
    found = claims_of(file)
    assert found
    for claim in found:
        assert claim in docstring


def test_no_claim_is_tested_twice() -> None:
    found = [claim for file in FILES for claim in claims_of(file)]
    assert len(found) == len(set(found))


def test_the_specification_has_47_claims_and_each_id_is_one() -> None:
    numbers = {"M": 14, "G": 14, "A": 19}
    assert [claim.id for claim in claims.CLAIMS] == [f"{letter}{n + 1}" for letter in numbers for n in range(numbers[letter])]


def test_committed_results_are_of_three_seeds_of_an_experiment_that_is_there() -> None:
    results = claim_page.read_results(FOLDER / "results")
    assert set(results) <= {claim for file in FILES for claim in claims_of(file)}
    for claim, result in results.items():
        assert result.claim == claims.BY_ID[claim], claim
        assert len(result.seeds) >= 3, claim
        assert len(result.finding.checks[0].values) >= 3, claim


def test_the_claims_that_must_have_run_have_run() -> None:
    wanted = {f"{letter}{number}" for letter, numbers in MUST_HAVE_RUN.items() for number in numbers}
    assert wanted <= set(claim_page.read_results(FOLDER / "results"))


def test_the_page_is_that_of_the_results() -> None:
    found = claim_page.page(claims.CLAIMS, claim_page.read_results(FOLDER / "results"), claims.TITLE)
    assert found == (FOLDER / "RESULTS.md").read_text(), "write it anew with: lmx report experiments/ablations"
