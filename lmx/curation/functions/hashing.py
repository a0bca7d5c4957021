"""Stable 64-bit hashes of words, n-grams and keys: the same on every machine, in every process and Python."""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORDS_CACHED = 1 << 18  # about 40 MB a process; a corpus' frequent words


def hash64(text: str) -> int:
    """64-bit hash of a text; lone surrogates are allowed."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


_word_hash = functools.lru_cache(maxsize=_WORDS_CACHED)(hash64)


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """[N] uint64, a hash a word."""
    return np.fromiter((_word_hash(word) for word in words), np.uint64, len(words))


def mixed(values: np.ndarray) -> np.ndarray:
    """Values with their bits mixed, so that any part of the result is a hash: the finaliser of splitmix64.

    Args:
      values: uint64 of any shape.

    Returns:
      uint64 of the same shape; a bijection.

    Reference: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
    """
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def ngrams(words: np.ndarray, smallest: int, largest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Hashes of all runs of n words, for each n in smallest..largest that the text is long enough for.

    Args:
      words: [N] uint64, from `word_hashes`.
      smallest: at least 1.
      largest: at least `smallest`.

    Yields:
      n and [N - n + 1] uint64; entry i is the hash of words i..i+n-1 (n itself is part of it).
    """
    total = np.zeros(len(words) + 1, np.uint64)
    for n in range(1, min(largest, len(words)) + 1):
        total = total[:-1] * _MULTIPLIER + words[n - 1 :]
        if n >= smallest:
            yield n, mixed(total + np.uint64(n))


def unit(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on a key and on what it is for: how a share of documents is chosen without a seeded draw."""
    return hash64(f"{purpose}\0{key}") / 2**64
