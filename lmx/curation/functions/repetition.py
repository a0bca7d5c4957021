"""How much of a text repeats itself: duplicate n-grams and lines."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lmx.curation.functions import hashing

# Fraction of characters in duplicate n-grams above which Gopher drops a document.
GOPHER_LIMITS: Mapping[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def duplicate_ngram_coverage(words: Sequence[str], smallest: int = 5, largest: int = 10) -> dict[int, float]:
    """Share of the characters of a text that stand in n-grams occurring at least twice; a character counts once.

    Args:
      words: the text's words; the space between them doesn't count.
      smallest: least n.
      largest: greatest n.

    Returns:
      n -> share in [0, 1]; 0 for an n that the text is too short for.

    Reference: Rae et al. (2021), arXiv:2112.11446, A.1.1.
    """
    coverage = dict.fromkeys(range(smallest, largest + 1), 0.0)
    lengths = np.fromiter((len(word) for word in words), np.int64, len(words))
    total = int(lengths.sum())
    if not total:
        return coverage
    for n, grams in hashing.ngrams(hashing.word_hashes(words), smallest, largest):
        _, which, counts = np.unique(grams, return_inverse=True, return_counts=True)
        starts = counts[which] > 1
        if not starts.any():
            break  # a longer repeat would contain this one
        edges = np.zeros(len(words) + 1, np.int64)
        edges[: len(starts)] += starts
        edges[n:] -= starts
        covered = np.cumsum(edges[:-1]) > 0
        coverage[n] = float(lengths[covered].sum() / total)
    return coverage


def duplicate_line_share(lines: Sequence[str]) -> float:
    """Share of the lines that repeat an earlier one, in [0, 1]."""
    if not lines:
        return 0.0
    return 1 - len(Counter(lines)) / len(lines)
