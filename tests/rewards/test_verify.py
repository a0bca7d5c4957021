"""Exact verifiers on known good and bad responses."""

import numpy as np
import pytest

from lmx.rewards import verify


@pytest.mark.parametrize(
    ("answer", "response"),
    [("7", "7"), ("7", " +07\n"), ("-3", "-3"), ("0", "-0"), ("l a m p", " l  a m p "), ("L A", "L A"), ("tree", "tree")],
)
def test_right_responses_pass(answer: str, response: str) -> None:
    assert verify.exact_answer({"answer": answer}, response)


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("7", "8"),
        ("7", "-7"),
        ("7", "7 apples"),
        ("7", "7.0"),
        ("7", ""),
        ("7", "٧"),
        ("l a m p", "lamp"),
        ("L A", "l a"),
        ("tree", "tree tree"),
    ],
)
def test_wrong_responses_fail(answer: str, response: str) -> None:
    assert not verify.exact_answer({"answer": answer}, response)


def test_an_endless_number_is_wrong_and_no_error() -> None:
    assert not verify.exact_answer({"answer": "1"}, "1" * 10_000)


def test_a_row_without_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the field 'answer'; it has 'prompt'"):
        verify.exact_answer({"prompt": "?"}, "")


def test_scores_are_one_number_a_row() -> None:
    scores = verify.scores([{"answer": "1"}, {"answer": "2"}], ["1", "1"])
    assert scores.dtype == np.float32 and scores.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="1 responses for 2 rows"):
        verify.scores([{"answer": "1"}, {"answer": "2"}], ["1"])


def test_ties_count_half() -> None:
    first, second = np.array([1, 0, 1, 0], np.float32), np.array([0, 1, 1, 0], np.float32)
    assert verify.wins(first, second).tolist() == [1.0, 0.0, 0.5, 0.5]
    assert np.mean(verify.wins(first, second) + verify.wins(second, first)) == 1.0
    with pytest.raises(ValueError, match="shapes"):
        verify.wins(first, second[:2])
