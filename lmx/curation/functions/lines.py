"""Lines of a text as line dedup compares them."""

import re
from collections.abc import Set

from lmx.curation.functions.hashing import hash64

_DIGITS = re.compile(r"\d")


def line_hash(line: str) -> int | None:
    """63-bit hash of a line without case, digits (all become 0) and outer or repeated space; None for a blank line.

    63 bits are what Beam codes as an integer.

    Reference: Wenzek et al. (2020), arXiv:1911.00359, section 3.1; accents and punctuation count here.
    """
    normal = _DIGITS.sub("0", " ".join(line.lower().split()))
    return hash64(normal) >> 1 if normal else None


def without(text: str, removed: Set[int]) -> tuple[str, int]:
    """The text without lines of the given hashes, and how many were taken out; no more than one blank line stays between two."""
    kept: list[str] = []
    count = 0
    for line in text.split("\n"):
        if (value := line_hash(line)) is not None and value in removed:
            count += 1
        elif line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
    return "\n".join(kept).strip(), count
