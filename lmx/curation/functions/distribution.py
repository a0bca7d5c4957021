"""How unlike the corpus a document's words are: the divergence of its unigram distribution."""

import math
import re
from collections import Counter
from collections.abc import Mapping

_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Lower-case words, and every other mark by itself."""
    return _TOKEN.findall(text.lower())


def divergence(counts: Mapping[str, int], corpus: Mapping[str, int], *, total: int, epsilon: float) -> float:
    """KL(document || corpus) over unigrams, nats.

    A token that the corpus' vocabulary lacks counts as seen `epsilon` times, so a document of outliers comes out high.

    Args:
      counts: token -> occurrences in the document.
      corpus: token -> occurrences in the corpus, for the vocabulary that is kept.
      total: tokens of the whole corpus, those outside the vocabulary included.
      epsilon: > 0, added to every count of the corpus.

    Returns:
      The divergence; 0 for an empty document.
    """
    length = sum(counts.values())
    if not length:
        return 0.0
    normalizer = math.log(total + epsilon * (len(corpus) + 1))
    nats = 0.0
    for token, count in sorted(counts.items()):  # a fixed order: float sums must not depend on the text's
        log_p = math.log(count / length)
        log_q = math.log(corpus.get(token, 0) + epsilon) - normalizer
        nats += count / length * (log_p - log_q)
    return nats


def document_counts(text: str) -> Counter[str]:
    """Token -> occurrences."""
    return Counter(tokens(text))
