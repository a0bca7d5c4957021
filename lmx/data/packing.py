"""Packing: documents and examples laid into rows of T tokens, each row a function of its number.

Every token to be learned is a label exactly once. A document of n tokens takes n + 2 places, BOS + document + EOS, each labelled
with the token behind it: so its first token is predicted too, and EOS, which has none behind it, is masked. EOS is an input all the
same: a reward is read there.
"""

import bisect
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.data.store import TokenStore
from lmx.tokenizer.protocol import Tokenizer, start_id


@dataclasses.dataclass(frozen=True)
class Example:
    """A sequence that is never cut.

    Attributes:
      ids: BOS, prompt, response, EOS.
      prompt_size: ids before the response, BOS included; they are never labels that count.
    """

    ids: np.ndarray
    prompt_size: int

    @property
    def size(self) -> int:
        """Places it takes in a row."""
        return len(self.ids)


class _RowBuilder:
    """One row [T], filled from the left."""

    def __init__(self, length: int, pad_id: int) -> None:
        self.pad_id = pad_id
        self._fields: dict[str, Any] = {name: np.zeros(length, np.int32) for name in ("segment_ids", "positions")}
        self._fields |= {name: np.full(length, pad_id, np.int32) for name in ("tokens", "labels")}
        self._fields["loss_mask"] = np.zeros(length, np.bool_)
        self._used, self._segments = 0, 0

    def add(self, inputs: np.ndarray, labels: np.ndarray, mask: np.ndarray | bool = True) -> None:
        """Appends one segment; its positions start at 0."""
        place = slice(self._used, self._used + len(inputs))
        self._used, self._segments = place.stop, self._segments + 1
        parts = {
            "tokens": inputs,
            "labels": labels,
            "loss_mask": mask,
            "segment_ids": self._segments,
            "positions": np.arange(len(inputs)),
        }
        for name, values in parts.items():
            self._fields[name][place] = values

    def build(self) -> LMBatch:
        return LMBatch(**self._fields)


def empty_row(length: int, pad_id: int) -> LMBatch:
    """A row [T] of padding, wholly masked."""
    return _RowBuilder(length, pad_id).build()


class PackedDocuments:
    """Rows of a token store: the documents end to end, cut every T.

    A document that crosses the end of a row goes on in the next one as a segment of its own, with positions from 0, whose first
    input is the label before it. Only the last row has padding.
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, length: int) -> None:
        self._store, self._length = store, length
        self._start_id, self._eos_id, self._pad_id = start_id(tokenizer), tokenizer.eos_id, tokenizer.pad_id
        self._starts = store.offsets + 2 * np.arange(len(store.offsets))  # place of each document; the last is their number

    @property
    def places(self) -> int:
        """Places that all documents take together."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        return -(-self.places // self._length)

    def __getitem__(self, index: int) -> LMBatch:
        row = _RowBuilder(self._length, self._pad_id)
        start = index * self._length
        self._fill(row, start, min(start + self._length, self.places))
        return row.build()

    @staticmethod
    def join(parts: Sequence[tuple["PackedDocuments", int, int]], length: int) -> LMBatch:
        """A row of stretches of several stores, each a segment or more of its own.

        Args:
          parts: (store, first place, places); a store's places go on beyond its last with its first.
          length: T, at least the places of all parts together.
        """
        row = _RowBuilder(length, parts[0][0]._pad_id)
        for packed, start, count in parts:
            start, stop = start % packed.places, start % packed.places + count
            while start < stop:  # once, but where the documents end inside
                end = min(stop, packed.places)
                packed._fill(row, start, end)
                start, stop = 0, stop - end
        return row.build()

    def _fill(self, row: _RowBuilder, start: int, end: int) -> None:
        """Adds the places start..end, which don't go beyond the last document's."""
        document = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < end:
            stop = min(end, int(self._starts[document + 1]))
            row.add(*self._places(document, start - int(self._starts[document]), stop - int(self._starts[document])))
            start, document = stop, document + 1

    def _places(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, labels and loss mask of places start..stop of a document of n tokens; there are n + 2."""
        first, last = (int(offset) for offset in self._store.offsets[document : document + 2])
        ids = self._store.tokens[first + max(start - 1, 0) : min(first + stop, last)].astype(np.int32)
        before = [self._start_id] if start == 0 else []
        after = [self._eos_id, self._pad_id][: max(0, stop + first - last)]  # what lies behind the text, the label of EOS included
        sequence = np.concatenate([np.array(before, np.int32), ids, np.array(after, np.int32)])[-(stop - start + 1) :]
        return sequence[:-1], sequence[1:], np.arange(start, stop) <= last - first


class PackedExamples:
    """Rows of whole examples; the loss counts on responses and their EOS."""

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, length: int, seed: int | None) -> None:
        """Plans the rows.

        Args:
          examples: each of at most `length` places.
          tokenizer: for the padding id.
          length: T.
          seed: examples are packed in an order drawn from it, None = in their own order.
        """
        order = list(range(len(examples)))
        if seed is not None:
            random.Random(seed).shuffle(order)
        self._examples, self._length, self._pad_id = examples, length, tokenizer.pad_id
        self._rows = best_fit([(number, examples[number].size) for number in order], length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LMBatch:
        row = _RowBuilder(self._length, self._pad_id)
        for number in self._rows[index]:
            _add_example(row, self._examples[number])
        return row.build()


class PairRows:
    """Preference pairs, one a row, unpacked."""

    def __init__(self, pairs: Sequence[tuple[Example, Example]], tokenizer: Tokenizer, length: int) -> None:
        self._pairs, self._length, self._pad_id = pairs, length, tokenizer.pad_id

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> PreferenceBatch:
        chosen, rejected = (self._row(example) for example in self._pairs[index])
        return PreferenceBatch(chosen=chosen, rejected=rejected)

    def _row(self, example: Example) -> LMBatch:
        row = _RowBuilder(self._length, self._pad_id)
        _add_example(row, example)
        return row.build()


def _add_example(row: _RowBuilder, example: Example) -> None:
    places = np.arange(example.size)
    labels = np.append(example.ids[1:], row.pad_id)
    row.add(example.ids, labels, (places >= example.prompt_size - 1) & (places < example.size - 1))


def best_fit(sizes: Sequence[tuple[int, int]], length: int) -> list[list[int]]:
    """Lays items into rows: each into the fullest row that has room, a new row if none has.

    Args:
      sizes: (item, size) in the order of placement, sizes in 1..length.
      length: room of a row.

    Returns:
      Items of each row, rows in the order they were begun.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for item, size in sizes:
        place = bisect.bisect_left(open_rows, (size, 0))
        if place == len(open_rows):
            rows.append([])
            room, row = length, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
        rows[row].append(item)
        if room > size:
            bisect.insort(open_rows, (room - size, row))
    return rows
