"""Questions and answers that a teacher writes over documents: what is asked of it, and what is made of its answer."""

import dataclasses
import re

from lmx.curation.functions import hashing

_PAIR = re.compile(
    r"question\s*:\s*(?P<question>.+?)\s*\n\s*answer\s*:\s*(?P<answer>.+?)\s*(?:\n\s*\n|\n\s*question\s*:|$)", re.I | re.S
)
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
      text: whole paragraphs.
      depth: where it begins, as a share of the document's characters, in [0, 1).
    """

    text: str
    depth: float


def choose_chunk(text: str, key: str, *, characters: int) -> Chunk:
    """About `characters` of a document from a paragraph on that the key chooses."""
    paragraphs = [paragraph for paragraph in text.split("\n") if paragraph.strip()]
    sizes = [len(paragraph) for paragraph in paragraphs]
    latest = len(paragraphs)
    tail = 0
    while latest > 1 and tail < characters:  # a chunk that begins later would be too short
        latest -= 1
        tail += sizes[latest]
    first = int(hashing.unit(key, "chunk") * (latest or 1))
    chosen: list[str] = []
    while first + len(chosen) < len(paragraphs) and sum(map(len, chosen)) < characters:
        chosen.append(paragraphs[first + len(chosen)])
    return Chunk("\n".join(chosen), sum(sizes[:first]) / max(sum(sizes), 1))


def writing_prompt(chunk: str) -> str:
    """What the teacher is asked to write."""
    return (
        f"{chunk}\n\nWrite one question about the text above that can only be answered with it, and its short answer, "
        "in the form:\n"
        "Question: ...\nAnswer: ...\n\nQuestion:"
    )


def answering_prompt(chunk: str, question: str) -> str:
    """What the teacher is asked in order to check a pair; without the text when `chunk` is empty."""
    return f"{chunk}\n\nQuestion: {question}\nAnswer:" if chunk else f"Question: {question}\nAnswer:"


def parse(written: str) -> tuple[str, str] | None:
    """Question and answer of what a teacher wrote after `writing_prompt`, None when it has not the form."""
    text = written if written.lstrip().lower().startswith("question") else f"Question:{written}"
    match = _PAIR.search(text)
    if match is None:
        return None
    question, answer = (" ".join(match[name].split()) for name in ("question", "answer"))
    return (question, answer) if question and answer else None


def same_answer(given: str, expected: str) -> bool:
    """Whether an answer's first line has the expected words and no others; case and punctuation don't count."""
    lines = given.strip().splitlines()
    return bool(lines) and _WORD.findall(lines[0].lower()) == _WORD.findall(expected.lower())


def appended(text: str, pair: tuple[str, str]) -> str:
    """The document with the pair at its end."""
    return f"{text.rstrip()}\n\nQuestion: {pair[0]}\nAnswer: {pair[1]}"
