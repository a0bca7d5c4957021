"""Generated problems with exact verifiers: instructions and preference pairs, easy, medium or hard."""

from lmx.data.generated import GeneratedPreferences, GeneratedTasks
from lmx.data.supervised import Instructions, Preferences
from lmx.data.tasks import (
    Addition,
    Copy,
    CountLetter,
    FirstWord,
    LastWord,
    Maximum,
    Reverse,
    SortLetters,
    Subtraction,
    Task,
    Uppercase,
)


def all_tasks(*, max_digits: int, max_letters: int, max_words: int) -> tuple[Task, ...]:
    """The ten tasks; sorting and reversing, the hard ones, get one letter fewer."""
    return (
        Addition(max_digits=max_digits),
        Subtraction(max_digits=max_digits),
        Maximum(max_digits=max_digits),
        Copy(max_letters=max_letters),
        Reverse(max_letters=max_letters - 1),
        SortLetters(max_letters=max_letters - 1),
        Uppercase(max_letters=max_letters),
        CountLetter(max_letters=max_letters),
        FirstWord(max_words=max_words),
        LastWord(max_words=max_words),
    )


def easy() -> tuple[Task, ...]:
    """One-digit sums and words of up to four letters."""
    return all_tasks(max_digits=1, max_letters=4, max_words=3)


def medium() -> tuple[Task, ...]:
    """Two-digit sums and words of up to six letters."""
    return all_tasks(max_digits=2, max_letters=6, max_words=5)


def hard() -> tuple[Task, ...]:
    """Four-digit sums and words of up to ten letters."""
    return all_tasks(max_digits=4, max_letters=10, max_words=8)


def problems(tasks: tuple[Task, ...], *, count: int, heldout_count: int = 500, seed: int = 0) -> GeneratedTasks:
    """The rows themselves, for evaluation and for sampling."""
    return GeneratedTasks(tasks=tasks, count=count, heldout_count=heldout_count, seed=seed)


def instructions(tasks: tuple[Task, ...], *, count: int, heldout_count: int = 500, seed: int = 0) -> Instructions:
    """Prompts with right answers."""
    return Instructions(source=problems(tasks, count=count, heldout_count=heldout_count, seed=seed))


def preferences(tasks: tuple[Task, ...], *, count: int, heldout_count: int = 500, seed: int = 1) -> Preferences:
    """Right answers preferred to near misses; another seed than the instructions', so most prompts are new."""
    return Preferences(source=GeneratedPreferences(problems=problems(tasks, count=count, heldout_count=heldout_count, seed=seed)))
