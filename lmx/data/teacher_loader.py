"""Batches of text joined with what a teacher's store says of each row."""

from typing import Any, Protocol

import numpy as np

from lmx.data.batches import LMBatch, TeacherBatch
from lmx.data.teacher_form import TeacherRow
from lmx.data.teacher_store import StoreReader, text_digest


class TextLoader(Protocol):
    """A loader of LMBatch, such as `lmx.data.loader.Loader`."""

    def __next__(self) -> LMBatch:
        """This process's rows of the next global batch."""

    def get_state(self) -> dict[str, Any]:
        """Where it stands."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where it stood."""


class TeacherLoader:
    """Iterator of TeacherBatch: row by row the text of a loader and the store's record of the same row.

    Every row is compared with the digest of the text that its record was made of, so no token is ever trained on another's logits.
    """

    def __init__(
        self, text: TextLoader, store: StoreReader, *, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> None:
        """Joins them, and tries the first batch.

        Args:
          text: at its start; gives the rows in the order in which the store was written.
          store: the split's store.
          batch_size: rows of the global batch.
          process_index: this process.
          process_count: processes.

        Raises:
          ValueError: the first rows are not those of the store.
        """
        self._text, self._store = text, store
        self._batch_size, self._local = batch_size, batch_size // process_count
        self._offset = process_index * self._local
        self._next_row = 0
        start = self.get_state()
        next(self, None)
        self.set_state(start)

    def __iter__(self) -> "TeacherLoader":
        return self

    def __next__(self) -> TeacherBatch:
        text = next(self._text)
        first = self._next_row + self._offset
        rows = self._rows(first, [_row_of(text, place) for place in range(self._local)])
        self._next_row += self._batch_size
        arrays: dict[str, Any] = {name: np.stack([getattr(row, name) for row in rows]) for name in TeacherRow._fields}
        return TeacherBatch(text=text, **arrays)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position, the same on all processes."""
        return {"text": self._text.get_state(), "next_row": self._next_row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on with exactly the batch that would have come next when the state was taken.

        Raises:
          ValueError: the state is none of such a loader.
        """
        if not isinstance(state, dict) or state.keys() != {"text", "next_row"}:
            raise ValueError(f"{state!r} is no position in batches with teacher logits; expected {{'text': ..., 'next_row': n}}")
        self._text.set_state(state["text"])
        self._next_row = state["next_row"]

    def _rows(self, first: int, texts: list[LMBatch]) -> list[TeacherRow]:
        """What is stored of some rows; nothing of those behind the last one that only fill up a batch, being wholly masked."""
        header, end = self._store.header, self._store.num_rows
        fillers = sum(first + place >= end and not np.any(text.loss_mask) for place, text in enumerate(texts))
        found = self._store.rows(range(first, first + len(texts) - fillers))
        for place, (digest, _) in enumerate(found):
            if digest != text_digest(texts[place]):
                raise ValueError(
                    f"row {first + place} of the split {self._store.split!r} is not the text that the teacher saw; train on the "
                    "data, length and order that the store was made of"
                )
        shape = (header.length, header.form.k)
        nothing = TeacherRow(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(header.length, np.float32))
        return [row for _, row in found] + [nothing] * fillers


def _row_of(batch: LMBatch, place: int) -> LMBatch:
    return LMBatch(
        tokens=batch.tokens[place],
        labels=batch.labels[place],
        loss_mask=batch.loss_mask[place],
        segment_ids=batch.segment_ids[place],
        positions=batch.positions[place],
    )
