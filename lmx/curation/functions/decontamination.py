"""Benchmark n-grams, and where a document contains them.

Reference: AFM (2024), arXiv:2407.21075, section 3.1: a document is dropped for any collision of 4 to 13 words with a benchmark,
unless the n-gram is common usage.
"""

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator

import numpy as np

from lmx.curation.functions import hashing

_PUNCTUATION = re.compile(r"[^\w\s]|_")


def words(text: str) -> list[str]:
    """Words in lower case without punctuation: "Don't stop" is "dont stop"."""
    return _PUNCTUATION.sub("", text.lower()).split()


@dataclasses.dataclass(frozen=True)
class GramTable:
    """The distinct n-grams of benchmarks, by their hashes.

    Attributes:
      smallest: least n.
      largest: greatest n.
      hashes: [G] uint64, sorted.
      owners: [G] int32, index into `names`: the first benchmark that has the n-gram.
      names: of the benchmarks.
      short_items: items with fewer than `smallest` words, which can't be looked for.
    """

    smallest: int
    largest: int
    hashes: np.ndarray
    owners: np.ndarray
    names: tuple[str, ...]
    short_items: int

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        buffer = io.BytesIO()
        sizes = np.array([self.smallest, self.largest, self.short_items])
        np.savez(buffer, sizes=sizes, hashes=self.hashes, owners=self.owners, names=np.array(self.names, str))
        return buffer.getvalue()


def from_bytes(data: bytes) -> GramTable:
    """The table that `GramTable.to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        smallest, largest, short = map(int, arrays["sizes"])
        return GramTable(smallest, largest, arrays["hashes"], arrays["owners"], tuple(map(str, arrays["names"])), short)


def build_table(items: Iterable[tuple[str, str]], *, smallest: int = 4, largest: int = 13) -> GramTable:
    """The n-grams of benchmark items; an item shorter than n is used at its own length, down to `smallest` words.

    Args:
      items: (benchmark, text); question and answer are items of their own or one text, as the benchmark shows them.
      smallest: least n.
      largest: greatest n.

    Raises:
      ValueError: no item has `smallest` words.
    """
    pairs = sorted(items)
    names = tuple(sorted({name for name, _ in pairs}))
    hashes, owners, short = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], 0
    for name, text in pairs:
        grams = [found for _, found in hashing.ngrams(hashing.word_hashes(words(text)), smallest, largest)]
        short += not grams
        hashes += grams
        owners.append(np.full(sum(map(len, grams)), names.index(name), np.int32))
    unique, first = np.unique(np.concatenate(hashes), return_index=True)  # the first index: benchmarks come in order of names
    if not len(unique):
        raise ValueError(f"{len(pairs)} benchmark items, but none has the {smallest} words that a collision takes")
    return GramTable(smallest, largest, unique, np.concatenate(owners)[first], names, short)


@dataclasses.dataclass(frozen=True, order=True)
class Hit:
    """An n-gram of a document that a benchmark has too.

    Attributes:
      n: its length in words.
      start: place of its first word.
      gram: its hash, as a signed number (what Beam codes as an integer).
      owner: index of the benchmark.
    """

    n: int
    start: int
    gram: int
    owner: int


def hits(document_words: list[str], table: GramTable) -> Iterator[Hit]:
    """All collisions of a document, the shortest n-grams first.

    Every collision of n words holds collisions of `smallest` words, so a document without these needs no further look.
    """
    for n, grams in hashing.ngrams(hashing.word_hashes(document_words), table.smallest, table.largest):
        places = np.minimum(np.searchsorted(table.hashes, grams), len(table.hashes) - 1)
        [starts] = np.nonzero(table.hashes[places] == grams)
        if not len(starts):
            return
        for start in starts.tolist():
            yield Hit(n, start, int(grams[start].view(np.int64)), int(table.owners[places[start]]))
