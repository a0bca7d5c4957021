"""Exact verifiers: is a response right, which of two is better, what does a batch score."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# (row, response) -> whether the response is right; rows are those of a source, with at least "answer".
Verifier = Callable[[Mapping[str, Any], str], bool]


def exact_answer(row: Mapping[str, Any], response: str) -> bool:
    """Whether the response is the row's "answer" and nothing else.

    Integers are compared by value, so "+7" and "07" are 7; text character by character, but runs of white space count as one
    space and white space around the response not at all.

    Raises:
      ValueError: the row has no "answer".
    """
    if "answer" not in row:
        raise ValueError(f"a row to verify needs the field 'answer'; it has {', '.join(map(repr, row)) or 'none'}")
    answer, given = (" ".join(text.split()) for text in (row["answer"], response))
    if INTEGER.fullmatch(answer):
        return INTEGER.fullmatch(given) is not None and _value(given) == _value(answer)
    return given == answer


def _value(integer: str) -> str:
    """Canonical digits; a degenerate response may have more of them than Python turns into an int."""
    digits = integer.lstrip("+-").lstrip("0")
    return f"-{digits}" if digits and integer.startswith("-") else digits or "0"


def scores(rows: Sequence[Mapping[str, Any]], responses: Sequence[str], verify: Verifier = exact_answer) -> np.ndarray:
    """[B] float32, 1 for a right response and 0 for a wrong one.

    Raises:
      ValueError: the numbers of rows and responses differ.
    """
    if len(rows) != len(responses):
        raise ValueError(f"{len(responses)} responses for {len(rows)} rows; there must be one for each")
    return np.array([verify(row, response) for row, response in zip(rows, responses, strict=True)], np.float32)


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[B] float32: 1 where the first score is higher, 0 where the second is, 0.5 at a tie; the mean is a win rate.

    Args:
      first: [B] float32, scores of one system's responses.
      second: [B] float32, scores of the other's responses to the same prompts.
    """
    if first.shape != second.shape:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape} cannot be compared; both need one score a prompt")
    return np.where(first == second, 0.5, first > second).astype(np.float32)
