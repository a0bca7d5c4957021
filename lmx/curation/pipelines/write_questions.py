"""Model-written data: a teacher writes questions and answers over some documents, which join the corpus as new documents."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import apache_beam as beam

from lmx.curation.document import Document
from lmx.curation.functions import hashing, questions
from lmx.curation.functions.records import document_key
from lmx.curation.pipelines.flow import COUNTS, BundleCounts, Flow, counted, label_of

Write = Callable[[Sequence[str], Sequence[int]], Sequence[str]]


class Writer(Protocol):
    """What completes prompts: a frozen dataclass whose `open` loads it, once a worker."""

    def open(self) -> Write:
        """(prompts, seeds) -> a continuation of each."""


class _Write(beam.DoFn):
    """Writes over the documents of a group, in the order of their keys: the teacher meets the same batches in every run."""

    def __init__(self, place: int, step: "WriteQuestions") -> None:
        self._place, self._step = place, step

    def setup(self) -> None:
        """Loads the teacher."""
        self._write = self._step.writer.open()

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts = BundleCounts()

    def process(self, group: tuple[int, Iterable[Document]]) -> Iterable[Document]:
        """One group."""
        documents = self._packed(sorted(group[1], key=lambda document: document.key))
        chunks = [questions.choose_chunk(item.text, item.key, characters=self._step.chunk_characters) for item in documents]
        written = self._asked(documents, [questions.writing_prompt(chunk.text) for chunk in chunks], "write")
        pairs = [questions.parse(text) for text in written]
        self._counts.add(self._place, "noted", "asked", len(documents))
        formed = [(item, chunk, pair) for item, chunk, pair in zip(documents, chunks, pairs, strict=True) if pair is not None]
        self._counts.add(self._place, "noted", "not_in_the_form", len(documents) - len(formed))
        if self._step.check:
            formed = self._checked(formed)
        for item, chunk, pair in formed:
            self._counts.add(self._place, "added")
            yield self._new(item, chunk, pair)

    def finish_bundle(self) -> Iterable[Any]:
        """Hands the counts out."""
        return self._counts.finish()

    def _packed(self, documents: list[Document]) -> list[Document]:
        """Consecutive documents joined until they are long enough; what is left over at the end is not used."""
        length = self._step.pack_characters
        if length is None:
            return documents
        packed, waiting = [], []
        for document in documents:
            waiting.append(document)
            if sum(len(item.text) for item in waiting) >= length:
                key = document_key(*(item.key for item in waiting))
                packed.append(dataclasses.replace(waiting[0], key=key, text="\n\n".join(item.text for item in waiting)))
                waiting = []
        return packed

    def _asked(self, documents: Sequence[Document], prompts: list[str], purpose: str) -> Sequence[str]:
        if not prompts:
            return []
        seeds = [hashing.hash64(f"{self._step.seed} {purpose} {item.key}") >> 33 for item in documents]
        texts = self._write(prompts, seeds)
        if len(texts) != len(prompts):
            raise RuntimeError(f"the writer of the step {self._step.name!r} gave {len(texts)} texts for {len(prompts)} prompts")
        return texts

    def _checked(self, formed: list[Any]) -> list[Any]:
        """Pairs that the teacher answers alike with the text in view, and not without it."""
        for chunk_in_view, expected, refusal in ((True, True, "wrong_with_the_text"), (False, False, "known_without_the_text")):
            prompts = [questions.answering_prompt(chunk.text if chunk_in_view else "", pair[0]) for _, chunk, pair in formed]
            answers = self._asked([item for item, _, _ in formed], prompts, refusal)
            kept = [
                entry
                for entry, answer in zip(formed, answers, strict=True)
                if questions.same_answer(answer, entry[2][1]) == expected
            ]
            self._counts.add(self._place, "noted", refusal, len(formed) - len(kept))
            formed = kept
        return formed

    def _new(self, item: Document, chunk: questions.Chunk, pair: tuple[str, str]) -> Document:
        text = questions.appended(item.text, pair)
        written = dataclasses.replace(item, key=document_key(item.key, "written", text), text=text)
        return written.tell(written_by=self._step.name, question=pair[0], answer=pair[1], chunk_depth=round(chunk.depth, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteQuestions:
    """Adds documents that end with a question about a part of them and its answer; the documents themselves stay.

    AFM's report gives no method for its synthetic long question answering; this one is our choice.

    Attributes:
      writer: the teacher; `writers.ModelWriter` for an lmx model.
      share: of the documents that are long enough, chosen by hash.
      least_characters: shorter documents are not used.
      chunk_characters: about how much of a document the teacher sees.
      pack_characters: join documents to this length before, None = each by itself.
      check: keep only pairs that the teacher answers alike with the chunk in view, and not without it.
      groups: documents are written over in as many batches, whose members depend on the keys alone.
      seed: of the choice and of the teacher's draws.
      name: in the card.
    """

    writer: Writer
    share: float = 0.1
    least_characters: int = 0
    chunk_characters: int = 2_000
    pack_characters: int | None = None
    check: bool = False
    groups: int = 64
    seed: int = 0
    name: str = "write_questions"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the step {self.name!r} has share={self.share}; it must lie in (0, 1]")
        if min(self.chunk_characters, self.groups, 1 if self.pack_characters is None else self.pack_characters) < 1:
            raise ValueError(f"the step {self.name!r} needs chunk_characters, pack_characters and groups of at least 1")

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        outputs = (
            documents
            | f"{label}/choose" >> beam.FlatMap(_chosen, self)
            | f"{label}/group" >> beam.GroupByKey()
            | f"{label}/write" >> beam.ParDo(_Write(place, self)).with_outputs(COUNTS, main="written")
        )
        together = (documents, outputs.written) | f"{label}/join" >> beam.Flatten()
        return Flow(together, (), (counts, outputs[COUNTS]))


def _chosen(document: Document, step: WriteQuestions) -> Iterable[tuple[int, Document]]:
    if len(document.text) >= step.least_characters and hashing.unit(document.key, f"questions {step.seed}") < step.share:
        yield int(hashing.unit(document.key, f"question group {step.seed}") * step.groups), document
