"""Facts to be looked up in a long text: documents that teach it, and the parts of which tests are made.

A fact is a key with a value, stated somewhere in a filler text and asked for at its end. The value is drawn anew in each document,
so it can only be found by reading.
"""

import dataclasses
import functools
import random
import string

from lmx.data.sources import Row, Rows, Source, check_split, field_of
from lmx.data.tasks import WORDS

# Raise it whenever the same config would draw other rows: it is part of the fingerprint.
GENERATION = "recall 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """How facts are worded. A fact is stated as it is asked: the question and then the answer, with what sets it off from the text.

    Attributes:
      question: with "{key}" in it; what stands before an answer.
      answer: with "{value}" in it.
      opening: what separates a stated fact from what comes before.
      ending: what separates it from what follows.
      keys: words that keys are drawn from.
      digits: of a value; leading zeros count.
    """

    question: str = "The code of the {key} is"
    answer: str = " {value}."
    opening: str = " "
    ending: str = " "
    keys: tuple[str, ...] = WORDS
    digits: int = 4

    def __post_init__(self) -> None:
        if "{key}" not in self.question or "{value}" not in self.answer:
            raise ValueError(f"question={self.question!r} needs a {{key}} in it, and answer={self.answer!r} a {{value}}")
        if self.digits < 1 or len(set(self.keys)) < 1:
            raise ValueError(f"digits={self.digits} must be at least 1, and keys not be empty")

    def draw(self, generator: random.Random, count: int) -> list[tuple[str, str]]:
        """(key, value) of `count` facts, keys distinct.

        Raises:
          ValueError: there are fewer keys.
        """
        if count > len(self.keys):
            raise ValueError(f"{count} facts in one text need as many keys, but there are {len(self.keys)}")
        keys = generator.sample(self.keys, count)
        return [(key, "".join(generator.choices(string.digits, k=self.digits))) for key in keys]

    def ask(self, key: str) -> str:
        """The question for a key."""
        return self.question.format(key=key)

    def reply(self, value: str) -> str:
        """The answer that holds a value."""
        return self.answer.format(value=value)

    def state(self, key: str, value: str) -> str:
        """The fact as a text states it."""
        return self.opening + self.ask(key) + self.reply(value) + self.ending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filler:
    """Text that holds no fact.

    Attributes:
      source: texts to take it from; None = sentences of random common words.
      field: the source's field.
    """

    source: Source | None = None
    field: str = "text"

    def draw(self, generator: random.Random, characters: int, split: str) -> str:
        """At least so many characters of a split."""
        parts: list[str] = []
        size = 0
        while size < characters:
            part = self._sentence(generator) if self.source is None else self._text(generator, split)
            parts.append(part)
            size += len(part)
        return "".join(parts)

    def _sentence(self, generator: random.Random) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(4, 12))).capitalize() + ". "

    def _text(self, generator: random.Random, split: str) -> str:
        assert self.source is not None
        rows = _rows(self.source, split)
        for _ in range(1000):
            index = generator.randrange(len(rows))
            if text := field_of(rows[index], self.field, self.source, index):
                return text + "\n"
        raise ValueError(f"{self.source} has no text in the field {self.field!r} in 1000 draws")


@functools.lru_cache(maxsize=8)
def _rows(source: Source, split: str) -> Rows:
    return source.load(split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallText:
    """Documents with facts in a filler and questions about them at the end: rows {"text"}, each a function of its number.

    Long documents whose end depends on their middle, as AFM's context lengthening mixes them in.

    Attributes:
      facts: their wording.
      filler: what surrounds them.
      num_facts: stated in a document, at random places.
      repeats: how often each is stated; a later statement asks what the first one said, so short texts teach more.
      questions: asked at the end, each of another fact.
      min_characters: of the filler; the length of each document is drawn between the two.
      max_characters: of the filler.
      count: rows of the split "train".
      heldout_count: rows of the split "heldout", of other draws.
      seed: of the draws.
    """

    facts: Facts = Facts()
    filler: Filler = Filler()
    num_facts: int = 4
    repeats: int = 1
    questions: int = 2
    min_characters: int
    max_characters: int
    count: int
    heldout_count: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.questions <= self.num_facts <= len(self.facts.keys):
            raise ValueError(
                f"questions={self.questions} must lie in 1..num_facts={self.num_facts}, and that not exceed the "
                f"{len(self.facts.keys)} keys"
            )
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} must be at least 1; every fact is stated once before it is asked for")
        if not 0 <= self.min_characters <= self.max_characters or self.count < 1 or self.heldout_count < 1:
            raise ValueError(
                f"min_characters={self.min_characters} must lie in 0..max_characters={self.max_characters}, count={self.count} and "
                f"heldout_count={self.heldout_count} be at least 1"
            )

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"."""
        check_split(self, split, ("train", "heldout"))
        return _RecallRows(self, split)

    def fingerprint(self) -> str:
        """The version of the generator, and the filler's fingerprint."""
        return GENERATION if self.filler.source is None else f"{GENERATION} {self.filler.source.fingerprint()}"

    def text(self, split: str, index: int) -> str:
        """The document of one row."""
        generator = random.Random(f"{self.seed}/{split}/{index}")
        size = generator.randint(self.min_characters, self.max_characters)
        filler = self.filler.draw(generator, size, split)[:size]
        known = self.facts.draw(generator, self.num_facts)
        stated = known * self.repeats
        places = sorted(generator.randint(0, size) for _ in stated)
        parts = []
        for start, end, fact in zip([0, *places], [*places, size], [*stated, None], strict=True):
            parts.append(filler[start:end])
            parts.append("" if fact is None else self.facts.state(*fact))
        asked = generator.sample(known, self.questions)
        answers = [self.facts.ask(key) + self.facts.reply(value) for key, value in asked]
        return "".join(parts) + "\n" + "\n".join(answers)


@dataclasses.dataclass(frozen=True)
class _RecallRows:
    config: RecallText
    split: str

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.heldout_count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {"text": self.config.text(self.split, index)}
