"""Facts in long texts."""

import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from lmx.core.fingerprint import fingerprint
from lmx.data.recall import Facts, Filler, RecallText

CONFIG = RecallText(min_characters=100, max_characters=300, count=20, num_facts=3, questions=2)
STATED = re.compile(r"The code of the (\w+) is (\d{4})\.")


def test_every_question_is_answered_by_a_fact_before_it() -> None:
    rows = CONFIG.load("train")
    assert len(rows) == 20
    for index in range(20):
        text = rows[index]["text"]
        body, *questions = text.split("\n")
        facts = dict(STATED.findall(body))
        assert len(facts) == 3 and len(questions) == 2
        assert 100 <= len(body) - 3 * len("The code of the key is 0000. ") <= 340
        for question in questions:
            ((key, value),) = STATED.findall(question)
            assert facts[key] == value


def test_a_fact_stated_again_says_what_it_said_at_first() -> None:
    config = dataclasses.replace(CONFIG, repeats=4)
    for index in range(20):
        body, *questions = config.load("train")[index]["text"].split("\n")
        stated = STATED.findall(body)
        assert sorted(stated) == sorted(list(dict(stated).items()) * 4) and len(set(stated)) == 3
        assert all(STATED.findall(question)[0] in stated for question in questions)


def test_rows_depend_on_their_number_and_split_alone() -> None:
    first, again, heldout = CONFIG.load("train"), CONFIG.load("train"), CONFIG.load("heldout")
    assert first[3] == again[3] != first[4] and first[3] != heldout[3]
    assert fingerprint(CONFIG) == fingerprint(CONFIG)


def test_values_are_uniform_whatever_the_key() -> None:
    drawn = [value for index in range(300) for _, value in Facts(digits=1).draw(random.Random(index), 2)]
    assert len(set(drawn)) == 10 and max(map(drawn.count, set(drawn))) < 100


def test_filler_comes_from_a_source_when_there_is_one(text_source: Callable[..., Any]) -> None:
    filler = Filler(source=text_source("xyz" * 20))
    config = RecallText(filler=filler, min_characters=90, max_characters=90, count=1, num_facts=1, questions=1)
    assert STATED.sub("", config.load("train")[0]["text"].split("\n")[0]).replace(" ", "")[:20] in "xyz" * 40
    assert config.fingerprint() != CONFIG.fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Facts(question="The code is"), "needs a {key} in it"),
        (lambda: Facts(digits=0), "digits=0 must be at least 1"),
        (lambda: Facts(keys=("a",)).draw(random.Random(0), 2), "2 facts in one text need as many keys, but there are 1"),
        (lambda: RecallText(min_characters=9, max_characters=8, count=1), "min_characters=9 must lie in 0..max_characters=8"),
        (lambda: RecallText(min_characters=1, max_characters=8, count=1, questions=9), "questions=9 must lie in 1..num_facts=4"),
        (lambda: RecallText(min_characters=1, max_characters=8, count=1, repeats=0), "repeats=0 must be at least 1"),
    ],
)
def test_impossible_texts_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
