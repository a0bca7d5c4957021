"""The page of claims: one Markdown table of what papers say and what was measured, and the figures behind each row."""

import math
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from lmx.core import serialize, storage
from lmx.eval.claims import Check, Claim, Finding, Result

RESULT = "result.json"
_SIGNS = {"below": "<", "above": ">", "at_most": "<=", "at_least": ">="}


def read_results(folder: epath.PathLike) -> dict[str, Result]:
    """The results in a folder's JSON files, by the claims' ids.

    Raises:
      ValueError: a file is no result, or two are of the same claim.
    """
    found: dict[str, Result] = {}
    for path in sorted(storage.as_path(folder).glob("*.json")):
        try:
            result = serialize.from_json(Result, storage.read_json(path))
        except ValueError as error:
            raise ValueError(f"{path} is not the result of a claim: {error}") from error
        if result.claim.id in found:
            raise ValueError(f"{path} is a second result of the claim {result.claim.id} in {folder}; keep one")
        found[result.claim.id] = result
    return found


def page(claims: Sequence[Claim], results: Mapping[str, Result], title: str) -> str:
    """Markdown: the table of all claims, those without a result as not run, and then each result's figures.

    Raises:
      ValueError: a result belongs to no claim.
    """
    if unknown := sorted(set(results).difference(claim.id for claim in claims)):
        raise ValueError(f"there are results of {', '.join(unknown)}, which the list of claims does not have")
    lines = [
        f"# {title}",
        "",
        f"{counts(claims, results)}.",
        "",
        "Written by `lmx report` from the results beside it. A figure is the mean over seeds, plus or minus its standard error. "
        "A claim passes when all its judged checks do; `<` and `>` want every seed on that side and the mean by more than two "
        "standard errors, `<=` and `>=` the mean.",
        "",
        "| | claim | source | measured | passed |",
        "|---|---|---|---|---|",
        *[_row(claim, results.get(claim.id)) for claim in claims],
    ]
    for claim in claims:
        if claim.id in results:
            lines += ["", *_section(results[claim.id])]
    return "\n".join(lines) + "\n"


def counts(claims: Sequence[Claim], results: Mapping[str, Result]) -> str:
    """How many claims were run and passed, in a line."""
    passed = sum(result.finding.passed for result in results.values())
    run = len(results)
    return f"{len(claims)} claims: {run} run, of which {passed} passed and {run - passed} did not; {len(claims) - run} not run"


def verdict(result: Result) -> list[str]:
    """Lines for the console: the claim, and each check."""
    mark = "passed" if result.finding.passed else "did NOT pass"
    return [
        f"{result.claim.id} {mark}: {result.claim.statement}",
        *[f"  {_mark(check)}: {check.what}: {_measured(check)}" for check in result.finding.checks],
    ]


def _row(claim: Claim, result: Result | None) -> str:
    if result is None:
        return f"| {claim.id} | {_cell(claim.statement)} | {_cell(claim.source)} | not run | |"
    headline = result.finding.checks[0]
    anchor = claim.id.lower()
    measured = f"{headline.what}: {_measured(headline)}"
    passed = "yes" if result.finding.passed else "**no**"
    return f"| [{claim.id}](#{anchor}) | {_cell(claim.statement)} | {_cell(claim.source)} | {_cell(measured)} | {passed} |"


def _section(result: Result) -> Iterable[str]:
    finding = result.finding
    yield from (f"## {result.claim.id}", "", f"{result.claim.statement} ({result.claim.source}.) Rule: {result.claim.rule}", "")
    yield from (f"Bed: {finding.bed}", "")
    yield from ("| check | measured | |", "|---|---|---|")
    yield from (f"| {_cell(check.what)} | {_measured(check)} | {_mark(check)} |" for check in finding.checks)
    yield from _tables(finding)
    if finding.note:
        yield from ("", finding.note)
    seeds = ", ".join(map(str, result.seeds))
    yield from (
        "",
        f"`{result.command}`, seeds {seeds}, commit {result.commit}, {result.seconds:.0f} s, {result.machine}, {result.date}",
    )


def _tables(finding: Finding) -> Iterable[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for measure, arms in finding.outcomes.items():
        groups.setdefault(tuple(arms), []).append(measure)
    for names, measures in groups.items():
        yield from ("", f"| arm | {' | '.join(map(_cell, measures))} |", "|---" * (len(measures) + 1) + "|")
        for arm in names:
            cells = [", ".join(_number(value) for value in finding.outcomes[measure][arm]) for measure in measures]
            yield f"| {_cell(arm)} | {' | '.join(cells)} |"


def _measured(check: Check) -> str:
    if check.rule == "holds":
        return f"{sum(value == 1 for value in check.values)} of {len(check.values)}"
    error = f" ± {_number(check.standard_error)}" if len(check.values) > 1 else ""
    return f"{_number(check.mean)}{error} ({_SIGNS[check.rule]} {check.bound:g})"


def _mark(check: Check) -> str:
    if not check.judged:
        return "reported only"
    return "passed" if check.passed else "**failed**"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
