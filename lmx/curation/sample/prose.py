"""Texts of the sample crawl: each is a function of its seed alone."""

import random
from collections.abc import Mapping, Sequence

from lmx.curation.sample import words

TOPICS = tuple(words.TOPICS)


def filled(pattern: str, slots: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    """The pattern with each slot, a word of one capital letter, replaced by a word drawn for it."""
    out = []
    for token in pattern.split():
        core = token.rstrip(".,?;:")
        if core == "D":
            core, token = str(draw.randint(2, 99)), str(draw.randint(2, 99)) + token[1:]
        elif core in slots:
            token = draw.choice(slots[core]) + token[1:]
        out.append(token)
    return " ".join(out)


def english_slots(topic: str) -> dict[str, Sequence[str]]:
    """Words for the slots of English sentences about a topic."""
    nouns, verbs, adjectives = (part.split() for part in words.TOPICS[topic])
    return {
        "N": nouns,
        "V": verbs,
        "A": adjectives,
        "P": words.PLACES.split(),
        "H": words.PEOPLE.split(),
        "O": words.OPENINGS.split(),
        "M": words.MANNERS.split(),
    }


def paragraphs(patterns: Sequence[str], slots: Mapping[str, Sequence[str]], draw: random.Random, count: int) -> list[str]:
    """Paragraphs of three to six sentences."""
    return [" ".join(filled(draw.choice(patterns), slots, draw) for _ in range(draw.randint(3, 6))) for _ in range(count)]


def article(seed: str, topic: str, *, count: int | None = None) -> list[str]:
    """Paragraphs of a good article in English, 5 to 9 of them unless `count` says otherwise."""
    draw = random.Random(seed)
    return paragraphs(words.PATTERNS, english_slots(topic), draw, count or draw.randint(5, 9))


def title(seed: str) -> str:
    """A heading of a few words."""
    return filled("The A N of P and the A N", _all_slots(), random.Random(f"title {seed}"))


def long_article(seed: str) -> list[str]:
    """Sixty paragraphs about everything."""
    draw = random.Random(seed)
    return paragraphs(words.PATTERNS, _all_slots(), draw, 60)


def _all_slots() -> dict[str, list[str]]:
    """Words for the slots of sentences about anything."""
    of_topics = [english_slots(topic) for topic in TOPICS]
    return {slot: [word for slots in of_topics for word in slots[slot]] for slot in of_topics[0]}


def spam(seed: str) -> list[str]:
    """Paragraphs of an advertisement that the rules for surfaces let pass."""
    draw = random.Random(seed)
    return paragraphs(words.SPAM_PATTERNS, _all_slots(), draw, 3)


def log(seed: str) -> list[str]:
    """Lines of a log that differ from each other in words, so that no line repeats."""
    draw = random.Random(seed)
    names = [f"{noun}{draw.choice('abcdefghij')}" for topic in TOPICS for noun in english_slots(topic)["N"]]
    return [filled(draw.choice(words.LOG_PATTERNS), {"N": names}, draw) for _ in range(draw.randint(30, 50))]


def foreign(seed: str, language: str) -> list[str]:
    """Paragraphs in German, French or Spanish."""
    draw = random.Random(seed)
    nouns, patterns = words.FOREIGN[language]
    return paragraphs(patterns, {"N": nouns.split()}, draw, draw.randint(4, 6))


def dirty(seed: str, topic: str) -> list[str]:
    """An article with a dirty word in most sentences."""
    draw = random.Random(f"dirty {seed}")
    terms = words.DIRTY.split()
    return [" ".join(f"{part}, {draw.choice(terms)}." for part in text.split(". ")) for text in article(seed, topic, count=5)]


def garbage(seed: str) -> list[str]:
    """Paragraphs of words that don't exist, with enough English between them to pass for prose."""
    draw = random.Random(seed)
    parts = [part.split() for part in words.SYLLABLES]
    glue = ("the", "of", "and", "to", "with", "was", "in", "that", "had", "for")

    def word() -> str:
        begin, *rest = (draw.choice(part) for part in (parts[0], parts[1], parts[0], parts[2]))
        return begin + "".join(rest)

    return [" ".join(word() if draw.random() < 0.6 else draw.choice(glue) for _ in range(60)) + "." for _ in range(4)]


def symbols(seed: str) -> list[str]:
    """Paragraphs of marks and numbers."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(("###", "|", "0x1f", "12", "--", "@@", "7", "#")) for _ in range(60)) for _ in range(4)]


def edited(text: Sequence[str], seed: str, *, edits: int) -> list[str]:
    """A text with a few words replaced, each in another place."""
    draw = random.Random(seed)
    split = [paragraph.split() for paragraph in text]
    places = [(row, column) for row, line in enumerate(split) for column in range(len(line))]
    for row, column in draw.sample(places, edits):
        split[row][column] = draw.choice(words.PLACES.split())
    return [" ".join(line) for line in split]


def benchmark_items(seed: int, count: int) -> list[str]:
    """Items of an invented benchmark."""
    draw = random.Random(f"benchmark {seed}")
    slots = {"N": words.BENCHMARK_NOUNS.split()}
    return [filled(draw.choice(words.BENCHMARK_PATTERNS), slots, draw) for _ in range(count)]


def inserted(text: Sequence[str], piece: str, seed: str) -> list[str]:
    """A text with a piece put between two sentences of a paragraph."""
    draw = random.Random(seed)
    row = draw.randrange(len(text))
    sentences = text[row].split(". ")
    sentences.insert(draw.randrange(len(sentences)), piece.rstrip("."))
    return [*text[:row], ". ".join(sentences), *text[row + 1 :]]
