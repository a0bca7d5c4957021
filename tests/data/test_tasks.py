"""Generated problems: right answers, wrong answers, disjoint splits."""

import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.data import tasks
from lmx.data.generated import GeneratedPreferences, GeneratedTasks
from lmx.data.tasks import Problem, Task, near_miss
from lmx.rewards.verify import exact_answer

TASKS: tuple[Task, ...] = (
    tasks.Addition(max_digits=2),
    tasks.Subtraction(max_digits=2),
    tasks.Maximum(max_digits=2),
    tasks.Copy(max_letters=5),
    tasks.Reverse(max_letters=5),
    tasks.SortLetters(max_letters=5),
    tasks.Uppercase(max_letters=5),
    tasks.CountLetter(max_letters=5),
    tasks.FirstWord(max_words=4),
    tasks.LastWord(max_words=4),
)


def after_colon(prompt: str) -> list[str]:
    return prompt.rstrip("?").split(": ")[1].replace(",", "").split()


# The answer worked out again from the prompt alone.
SOLUTIONS: dict[str, Callable[[str], str]] = {
    "addition": lambda prompt: str(eval(prompt.removeprefix("What is ").removesuffix("?"))),
    "subtraction": lambda prompt: str(eval(prompt.removeprefix("What is ").removesuffix("?"))),
    "maximum": lambda prompt: str(max(map(int, after_colon(prompt)))),
    "copy": lambda prompt: " ".join(after_colon(prompt)),
    "reverse": lambda prompt: " ".join(after_colon(prompt)[::-1]),
    "sort_letters": lambda prompt: " ".join(sorted(after_colon(prompt))),
    "uppercase": lambda prompt: " ".join(after_colon(prompt)).upper(),
    "count_letter": lambda prompt: str(after_colon(prompt).count(prompt.split(" is ")[1][0])),
    "first_word": lambda prompt: after_colon(prompt)[0],
    "last_word": lambda prompt: after_colon(prompt)[-1],
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_agree_with_a_solution_from_the_prompt(task: Task) -> None:
    generator = random.Random(0)
    for _ in range(100):
        problem = task.draw(generator)
        assert problem.answer == SOLUTIONS[task.name](problem.prompt)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_near_misses_are_wrong_and_of_several_kinds(task: Task) -> None:
    generator = random.Random(1)
    problem = task.draw(generator)
    responses = {near_miss(problem, generator) for _ in range(60)}
    assert len(responses) > 2
    assert not any(exact_answer({"answer": problem.answer}, response) for response in responses)


@hypothesis.given(st.integers(-1000, 1000), st.integers())
def test_near_misses_of_numbers_are_other_numbers(answer: int, seed: int) -> None:
    response = near_miss(Problem("", str(answer)), random.Random(seed))
    assert int(response) != answer and response == str(int(response))


def test_difficulty_bounds_the_length() -> None:
    generator = random.Random(0)
    lengths = {len(after_colon(tasks.Reverse(max_letters=4).draw(generator).prompt)) for _ in range(100)}
    assert lengths == {2, 3, 4}
    with pytest.raises(ValueError, match="max_digits=0 must be at least 1"):
        tasks.Addition(max_digits=0)


def test_rows_are_a_function_of_seed_split_and_index() -> None:
    rows = GeneratedTasks(tasks=TASKS, count=50).load("train")
    again = GeneratedTasks(tasks=TASKS, count=20).load("train")
    other = GeneratedTasks(tasks=TASKS, count=20, seed=1).load("train")
    assert [rows[19], rows[3]] == [again[19], again[3]]
    assert [rows[index] for index in range(20)] != [other[index] for index in range(20)]
    assert [rows[index]["task"] for index in range(10)] == [task.name for task in TASKS]
    with pytest.raises(IndexError):
        rows[50]


def test_no_prompt_is_both_trained_on_and_held_out() -> None:
    train = [GeneratedTasks(tasks=TASKS[:2], count=1500, seed=seed).load("train") for seed in range(2)]
    heldout = GeneratedTasks(tasks=TASKS[:2], count=1, heldout_count=500, seed=3).load("heldout")
    trained = {rows[index]["prompt"] for rows in train for index in range(1500)}
    assert trained.isdisjoint(heldout[index]["prompt"] for index in range(500))


def test_preference_rows_prefer_the_right_answer() -> None:
    source = GeneratedPreferences(problems=GeneratedTasks(tasks=TASKS, count=50))
    rows = source.load("train")
    for index in range(50):
        row = rows[index]
        assert exact_answer(row, row["chosen"]) and not exact_answer(row, row["rejected"])


def test_unknown_splits_and_empty_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="no split 'test', only 'train', 'heldout'"):
        GeneratedTasks(tasks=TASKS, count=1).load("test")
    with pytest.raises(ValueError, match="tasks is empty"):
        GeneratedTasks(tasks=(), count=1)
    with pytest.raises(ValueError, match="count=0"):
        GeneratedTasks(tasks=TASKS, count=0)
