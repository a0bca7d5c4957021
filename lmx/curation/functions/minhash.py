"""MinHash: signatures whose agreement estimates the Jaccard similarity of two texts, and bands that bring similar ones together."""

import dataclasses
import re

import numpy as np

from lmx.curation.functions import hashing

_WORD = re.compile(r"\w+")
_BLOCK = 512  # shingles hashed at once: with 128 permutations the 512 KB stay in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinHash:
    """How similar texts are found.

    Two texts with Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands.

    Attributes:
      shingle: words a shingle.
      bands: keys a document.
      rows: permutations a band.
      threshold: least estimated similarity of a pair that shares a band; 0 = sharing one is enough.
      seed: of the permutations.

    Reference: Broder (1997), "On the resemblance and containment of documents".
    """

    shingle: int = 5
    bands: int = 16
    rows: int = 8
    threshold: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shingle, self.bands, self.rows) < 1:
            raise ValueError(f"MinHash(shingle={self.shingle}, bands={self.bands}, rows={self.rows}) must all be at least 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"MinHash(threshold={self.threshold}) must lie in [0, 1]")

    @property
    def permutations(self) -> int:
        """Entries of a signature."""
        return self.bands * self.rows


def shingles(text: str, size: int) -> np.ndarray:
    """[S] uint64, the distinct runs of `size` words (case and punctuation don't count); a shorter text is one shingle."""
    words = _WORD.findall(text.lower())
    if not words:
        return np.zeros(0, np.uint64)
    size = min(size, len(words))
    [(_, grams)] = hashing.ngrams(hashing.word_hashes(words), size, size)
    return np.unique(grams)


def signature(grams: np.ndarray, config: MinHash) -> np.ndarray:
    """[permutations] uint64: for each permutation the least hash of a shingle; all ones for a text without any."""
    salts = hashing.mixed(np.arange(1, config.permutations + 1, dtype=np.uint64) + np.uint64(config.seed << 20))
    least = np.full(config.permutations, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams), _BLOCK):
        hashes = hashing.mixed(grams[start : start + _BLOCK, None] ^ salts)  # [S, permutations]
        np.minimum(least, hashes.min(axis=0), out=least)
    return least


def band_keys(signed: np.ndarray, config: MinHash) -> list[str]:
    """A key a band; texts with an equal key are candidates."""
    return [f"{band}:{_digest(row)}" for band, row in enumerate(signed.reshape(config.bands, config.rows))]


def _digest(row: np.ndarray) -> str:
    [(_, whole)] = hashing.ngrams(row, len(row), len(row))
    return f"{int(whole[0]):016x}"


def sketch(signed: np.ndarray) -> bytes:
    """The signature with a byte an entry: enough to estimate similarity, and an eighth as much to carry about.

    Reference: Li and Koenig (2010), arXiv:0910.3349 (b-bit minwise hashing).
    """
    return (signed & np.uint64(0xFF)).astype(np.uint8).tobytes()


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Estimate of the Jaccard similarity of two texts from their signatures: mean 's', variance s (1 - s) / permutations."""
    return float(np.mean(a == b))


def sketch_similarity(a: bytes, b: bytes) -> float:
    """Estimate from sketches, corrected for entries whose bytes agree by chance; may be a little below 0."""
    share = np.mean(np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8))
    return float((share - 1 / 256) / (1 - 1 / 256))
