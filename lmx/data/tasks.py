"""Problems with one right answer, and wrong answers that look right: arithmetic and the handling of letters and words.

A task draws a `Problem` from a random generator; everything else (splits, counts, preference pairs) is in `lmx.data.generated`.
Letters stand apart ("l a m p"), so each is a token of its own in any vocabulary, and digits are split by the tokenizer.
"""

import dataclasses
import random
import string
from collections.abc import Callable
from typing import ClassVar, Protocol

_WORDS = """
apple arm ball band bank bell bird blue boat bone book bread brick bridge bush cake camp card cat chair cloud coat corn cup
dance desk dog door dream drum duck dust earth egg farm field fire fish flag floor fork frog game gate gift glass gold grass
green hand hat hill home horse house ice iron jar key king kite lake lamp leaf light lion map milk moon mouse music nail nest
night north nut ocean orange owl paint paper park path pear pen piano plate pond queen rain red river road rock roof room rope
rose salt sand sea seed sheep ship shoe silver sky snow song south spoon star stone storm street sugar summer sun table tea
tent train tree tower town truck valley wall water wave wheel wind window winter wolf wood wool yard yellow zebra
"""
WORDS = tuple(_WORDS.split())


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      prompt: the whole instruction.
      answer: the only right response.
      copied: the part of the prompt that a careless response repeats, "" if none.
    """

    prompt: str
    answer: str
    copied: str = ""


class Task(Protocol):
    """A family of problems; implementations are frozen dataclasses whose fields set the difficulty."""

    name: ClassVar[str]

    def draw(self, generator: random.Random) -> Problem:
        """One problem; all randomness comes from `generator`."""


def _number(generator: random.Random, max_digits: int) -> int:
    """A number whose count of digits is uniform, so that short ones aren't rare."""
    digits = generator.randint(1, max_digits)
    return generator.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _letters(generator: random.Random, max_letters: int) -> list[str]:
    return generator.choices(string.ascii_lowercase, k=generator.randint(2, max_letters))


def _words(generator: random.Random, max_words: int) -> list[str]:
    return generator.choices(WORDS, k=generator.randint(2, max_words))


def _at_least(**limits: tuple[int, int]) -> None:
    for name, (value, minimum) in limits.items():
        if value < minimum:
            raise ValueError(f"{name}={value} must be at least {minimum}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Numbers:
    """Numbers of 1 to `max_digits` digits."""

    max_digits: int

    def __post_init__(self) -> None:
        _at_least(max_digits=(self.max_digits, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spelling:
    """A word of 2 to `max_letters` letters, spelled."""

    max_letters: int

    def __post_init__(self) -> None:
        _at_least(max_letters=(self.max_letters, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WordList:
    """A list of 2 to `max_words` common words."""

    max_words: int

    def __post_init__(self) -> None:
        _at_least(max_words=(self.max_words, 2))


class Addition(_Numbers):
    """Sum of two numbers."""

    name: ClassVar[str] = "addition"

    def draw(self, generator: random.Random) -> Problem:
        """One sum."""
        a, b = (_number(generator, self.max_digits) for _ in range(2))
        return Problem(f"What is {a} + {b}?", str(a + b), copied=str(a))


class Subtraction(_Numbers):
    """Difference of two numbers, negative half the time."""

    name: ClassVar[str] = "subtraction"

    def draw(self, generator: random.Random) -> Problem:
        """One difference."""
        a, b = (_number(generator, self.max_digits) for _ in range(2))
        return Problem(f"What is {a} - {b}?", str(a - b), copied=str(a))


class Maximum(_Numbers):
    """The largest of three numbers."""

    name: ClassVar[str] = "maximum"

    def draw(self, generator: random.Random) -> Problem:
        """One comparison."""
        numbers = [_number(generator, self.max_digits) for _ in range(3)]
        return Problem(f"Which is the largest: {', '.join(map(str, numbers))}?", str(max(numbers)), copied=str(min(numbers)))


class Copy(_Spelling):
    """A spelled word repeated."""

    name: ClassVar[str] = "copy"

    def draw(self, generator: random.Random) -> Problem:
        """One word."""
        word = " ".join(_letters(generator, self.max_letters))
        return Problem(f"Repeat the letters: {word}", word)


class Reverse(_Spelling):
    """A spelled word backwards."""

    name: ClassVar[str] = "reverse"

    def draw(self, generator: random.Random) -> Problem:
        """One word."""
        letters = _letters(generator, self.max_letters)
        return Problem(f"Reverse the letters: {' '.join(letters)}", " ".join(reversed(letters)), copied=" ".join(letters))


class Uppercase(_Spelling):
    """A spelled word in capitals."""

    name: ClassVar[str] = "uppercase"

    def draw(self, generator: random.Random) -> Problem:
        """One word."""
        word = " ".join(_letters(generator, self.max_letters))
        return Problem(f"Write in capitals: {word}", word.upper(), copied=word)


class SortLetters(_Spelling):
    """The letters of a spelled word in alphabetical order."""

    name: ClassVar[str] = "sort_letters"

    def draw(self, generator: random.Random) -> Problem:
        """One word."""
        letters = _letters(generator, self.max_letters)
        return Problem(f"Sort the letters: {' '.join(letters)}", " ".join(sorted(letters)), copied=" ".join(letters))


class CountLetter(_Spelling):
    """How often a letter stands in a spelled word."""

    name: ClassVar[str] = "count_letter"

    def draw(self, generator: random.Random) -> Problem:
        """One count; the word is drawn from three letters, so that counts above one are common."""
        alphabet = generator.sample(string.ascii_lowercase, k=3)
        letters = generator.choices(alphabet, k=generator.randint(2, self.max_letters))
        return Problem(
            f"How many times is {alphabet[0]} in: {' '.join(letters)}?", str(letters.count(alphabet[0])), copied=str(len(letters))
        )


class FirstWord(_WordList):
    """The first word of a list."""

    name: ClassVar[str] = "first_word"

    def draw(self, generator: random.Random) -> Problem:
        """One list."""
        words = _words(generator, self.max_words)
        return Problem(f"Give the first word: {' '.join(words)}", words[0], copied=words[-1])


class LastWord(_WordList):
    """The last word of a list."""

    name: ClassVar[str] = "last_word"

    def draw(self, generator: random.Random) -> Problem:
        """One list."""
        words = _words(generator, self.max_words)
        return Problem(f"Give the last word: {' '.join(words)}", words[-1], copied=words[0])


def near_miss(problem: Problem, generator: random.Random) -> str:
    """A wrong response of the right form: a careless copy, or the answer with one slip in it."""
    slips = _number_slips if problem.answer.lstrip("-").isdigit() else _text_slips
    candidates = [slip(problem.answer, generator) for slip in slips]
    if problem.copied:
        candidates.append(problem.copied)
    wrong = [candidate for candidate in candidates if candidate and candidate != problem.answer]
    return generator.choice(wrong)


def _off_by_one(answer: str, generator: random.Random) -> str:
    return str(int(answer) + generator.choice((-1, 1)))


def _off_by_ten(answer: str, generator: random.Random) -> str:
    return str(int(answer) + generator.choice((-10, 10)))


def _one_digit_changed(answer: str, generator: random.Random) -> str:
    position = generator.randrange(answer.startswith("-"), len(answer))
    # A leading zero would make a shorter number of it, or the same one.
    digits = [digit for digit in string.digits if digit != answer[position] and (digit != "0" or len(answer) == 1)]
    return answer[:position] + generator.choice(digits) + answer[position + 1 :]


def _items(answer: str) -> list[str]:
    """Words of an answer, or the letters of its only word."""
    return answer.split() if " " in answer else list(answer)


def _joined(items: list[str], answer: str) -> str:
    return (" " if " " in answer else "").join(items)


def _one_item_dropped(answer: str, generator: random.Random) -> str:
    items = _items(answer)
    del items[generator.randrange(len(items))]
    return _joined(items, answer)


def _one_item_doubled(answer: str, generator: random.Random) -> str:
    items = _items(answer)
    position = generator.randrange(len(items))
    return _joined([*items[: position + 1], *items[position:]], answer)


def _neighbours_swapped(answer: str, generator: random.Random) -> str:
    items = _items(answer)
    if len(items) < 2:
        return answer
    position = generator.randrange(len(items) - 1)
    items[position : position + 2] = reversed(items[position : position + 2])
    return _joined(items, answer)


def _one_letter_changed(answer: str, generator: random.Random) -> str:
    letters = [position for position, letter in enumerate(answer) if letter != " "]
    position = generator.choice(letters)
    alphabet = string.ascii_uppercase if answer[position].isupper() else string.ascii_lowercase
    return answer[:position] + generator.choice(alphabet) + answer[position + 1 :]


_Slip = Callable[[str, random.Random], str]
_number_slips: tuple[_Slip, ...] = (_off_by_one, _off_by_ten, _one_digit_changed)
_text_slips: tuple[_Slip, ...] = (_one_item_dropped, _one_item_doubled, _neighbours_swapped, _one_letter_changed)
