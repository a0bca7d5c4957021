"""Documents whose words are unlike the corpus': divergence from its unigram distribution, in two passes."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from lmx.curation.document import Document, Dropped, drop
from lmx.curation.functions import distribution
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of

_FLUSH = 200_000  # distinct tokens that a bundle gathers before it hands their counts on


class _CountTokens(beam.DoFn):
    """(token, occurrences), added up over many documents before they are shuffled."""

    def start_bundle(self) -> None:
        """Begins to count."""
        self._counts: Counter[str] = Counter()

    def process(self, document: Document) -> Iterable[tuple[str, int]]:
        """One document."""
        self._counts.update(distribution.tokens(document.text))
        if len(self._counts) > _FLUSH:
            yield from self._counts.items()
            self._counts = Counter()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Hands the counts on."""
        window = GlobalWindow()
        for item in self._counts.items():
            yield WindowedValue(item, window.max_timestamp(), (window,))


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _number(item: tuple[str, int]) -> int:
    return item[1]


class _Judge(beam.DoFn):
    """Drops documents that diverge too much, and tells the others' divergence."""

    def __init__(self, place: int, epsilon: float, most: float) -> None:
        self._place, self._epsilon, self._most = place, epsilon, most

    def start_bundle(self) -> None:
        """Takes the corpus' counts as a table once a bundle."""
        self._vocabulary: dict[str, int] | None = None

    def process(self, document: Document, vocabulary: list[tuple[str, int]], total: int) -> Iterable[Any]:
        """One document, and the corpus' counts."""
        if self._vocabulary is None:
            self._vocabulary = dict(vocabulary)
        counts = distribution.document_counts(document.text)
        nats = distribution.divergence(counts, self._vocabulary, total=total, epsilon=self._epsilon)
        if nats > self._most:
            yield beam.pvalue.TaggedOutput(
                DROPS, drop(self._place, document, Dropped("unlike_the_corpus", f"{nats:.2f} nats, at most {self._most}"))
            )
        else:
            yield document.tell(divergence=round(nats, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDistribution:
    """Drops documents with KL(document || corpus) over unigrams above a limit, and sets the field `divergence`.

    For a percentile instead of a limit, set `most` to infinity and let `select.KeepShare(score="divergence", lowest=True)` follow.
    Short documents diverge more than long ones, so ask for some length before.

    Attributes:
      most: nats.
      epsilon: added to every count of the corpus.
      vocabulary: most frequent tokens that are kept; rarer ones count as unseen.
      name: in the card.
    """

    most: float
    epsilon: float = 1.0
    vocabulary: int = 200_000
    name: str = "token_distribution"

    def __post_init__(self) -> None:
        if not self.most > 0 or not self.epsilon > 0 or self.vocabulary < 1:
            raise ValueError(
                f"the step {self.name!r} has most={self.most}, epsilon={self.epsilon} and vocabulary={self.vocabulary}; "
                "all must be above 0"
            )

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        tokens = documents | f"{label}/tokens" >> beam.ParDo(_CountTokens()) | f"{label}/sum" >> beam.CombinePerKey(sum)
        total = tokens | f"{label}/numbers" >> beam.Map(_number) | f"{label}/total" >> beam.CombineGlobally(sum)
        vocabulary = (
            tokens
            | f"{label}/most frequent" >> beam.combiners.Top.Of(self.vocabulary, key=_by_count)
            | f"{label}/each" >> beam.FlatMap(list)
        )
        outputs = documents | f"{label}/judge" >> beam.ParDo(
            _Judge(place, self.epsilon, self.most), beam.pvalue.AsList(vocabulary), beam.pvalue.AsSingleton(total)
        ).with_outputs(DROPS, main="documents")
        return Flow(outputs.documents, (outputs[DROPS],), (counts,))
