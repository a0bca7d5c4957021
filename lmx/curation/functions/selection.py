"""Choosing a share of documents without a seeded draw: cuts in histograms, so that the order of documents doesn't matter."""

from collections.abc import Iterable, Mapping

import numpy as np

HASH_BUCKETS = 1 << 14
BUCKETS = 1 << 20  # of a score


def score_bucket(score: float) -> int:
    """A 20-bit number that grows with a score: its sign, exponent and eleven bits of mantissa (steps of 0.05%).

    Raises:
      ValueError: the score is not a number.
    """
    if score != score:
        raise ValueError("the score is not a number")
    bits = int(np.float32(score).view(np.uint32))
    ordered = bits ^ 0xFFFFFFFF if bits >> 31 else bits | 0x80000000
    return ordered >> 12


def top_cut(histogram: Mapping[int, int], share: float) -> int:
    """The lowest bucket to keep so that at least `share` of the documents stay.

    Args:
      histogram: bucket -> documents.
      share: in (0, 1].
    """
    wanted, kept = share * sum(histogram.values()), 0
    for bucket in sorted(histogram, reverse=True):
        kept += histogram[bucket]
        if kept >= wanted - 1e-9:
            return bucket
    return 0


def capped_counts(counts: Mapping[str, int], most: Mapping[str, float]) -> dict[str, int]:
    """How many documents of each topic to keep so that none has more than its share of what is kept.

    Args:
      counts: topic -> documents.
      most: topic -> greatest share of the result, in [0, 1); topics that aren't named keep all.

    Returns:
      topic -> documents to keep.
    """
    capped: set[str] = set()
    while True:
        free = sum(count for topic, count in counts.items() if topic not in capped)
        left = 1 - sum(most[topic] for topic in capped)
        total = free / left if left > 1e-9 else float(free)
        over = {topic for topic in counts if topic in most and topic not in capped and counts[topic] > most[topic] * total + 1e-9}
        if not over:
            break
        capped |= over
    if not free:  # every topic has a cap: their proportions are what can be reached
        whole = sum(most[topic] for topic in capped)
        total = min(counts[topic] / most[topic] for topic in capped) if whole > 0 else 0.0
    return {topic: min(count, round(most[topic] * total)) if topic in capped else count for topic, count in counts.items()}


def hash_cut(histogram: Iterable[tuple[int, int]], wanted: int) -> int:
    """The first bucket to leave out so that about `wanted` documents stay; nearest count, the lower bucket at a tie."""
    best, best_distance, kept = 0, wanted, 0
    for bucket, count in sorted(histogram):
        kept += count
        if abs(kept - wanted) < best_distance:
            best, best_distance = bucket + 1, abs(kept - wanted)
    return best
