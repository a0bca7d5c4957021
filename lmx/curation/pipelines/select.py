"""Shares of a corpus: the best by a score, and topics cut down to what they may have."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from lmx.curation.document import Document, Dropped, drop, field, set_aside
from lmx.curation.functions import hashing, selection
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of

_ALL = ""


def _scored(document: Document, score: str, within: str | None, step: str) -> tuple[str, int]:
    group = str(field(document, within, step)) if within else _ALL
    value = field(document, score, step)
    if not isinstance(value, int | float):
        raise ValueError(f"the step {step!r} ranks by {score!r}, which holds {value!r}")
    return group, selection.score_bucket(value)


class _Ranked(beam.DoFn):
    """((group, bucket of the score), document); a document without a score is set aside."""

    def __init__(self, place: int, score: str, within: str | None, step: str, sign: int) -> None:
        self._place, self._score, self._within, self._step, self._sign = place, score, within, step, sign

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        try:
            group, bucket = _scored(document, self._score, self._within, self._step)
        except ValueError as error:
            yield beam.pvalue.TaggedOutput(DROPS, set_aside(self._place, document, error))
            return
        yield (group, bucket if self._sign > 0 else selection.BUCKETS - 1 - bucket), document


def _bucket_one(item: tuple[tuple[str, int], Document]) -> tuple[tuple[str, int], int]:
    return item[0], 1


def _by_group(item: tuple[tuple[str, int], int]) -> tuple[str, tuple[int, int]]:
    (group, bucket), count = item
    return group, (bucket, count)


def _cut_group(item: tuple[str, Iterable[tuple[int, int]]], share: float) -> tuple[str, int]:
    group, histogram = item
    return group, selection.top_cut(dict(histogram), share)


class _Above(beam.DoFn):
    """Documents at or above their group's cut."""

    def __init__(self, place: int, score: str, reason: str) -> None:
        self._place, self._score, self._reason = place, score, reason

    def process(self, item: tuple[tuple[str, int], Document], found: dict[str, int]) -> Iterable[Any]:
        """One document, and the cuts."""
        (group, bucket), document = item
        if bucket >= found[group]:
            yield document
            return
        yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, Dropped(self._reason, f"{document.meta[self._score]}")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepShare:
    """Keeps the documents with the best scores: a share of all, or of each group.

    The cut falls between two buckets of the score (0.05% wide), so a few more may stay than asked for.

    Attributes:
      score: field that holds a number.
      share: in (0, 1], of the documents that come.
      within: rank apart for each value of this field, such as "language"; None = all together.
      lowest: the lowest scores are the best.
      name: in the card.
    """

    score: str
    share: float
    within: str | None = None
    lowest: bool = False
    name: str = "keep_share"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the step {self.name!r} has share={self.share}; it must lie in (0, 1]")

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        ranked = documents | f"{label}/rank" >> beam.ParDo(
            _Ranked(place, self.score, self.within, self.name, -1 if self.lowest else 1)
        ).with_outputs(DROPS, main="ranked")
        found = (
            ranked.ranked
            | f"{label}/one" >> beam.Map(_bucket_one)
            | f"{label}/histogram" >> beam.CombinePerKey(sum)
            | f"{label}/by group" >> beam.Map(_by_group)
            | f"{label}/groups" >> beam.GroupByKey()
            | f"{label}/cut" >> beam.Map(_cut_group, self.share)
        )
        reason = f"{self.score}_too_{'high' if self.lowest else 'low'}"
        outputs = ranked.ranked | f"{label}/keep" >> beam.ParDo(
            _Above(place, self.score, reason), beam.pvalue.AsDict(found)
        ).with_outputs(DROPS, main="documents")
        return Flow(outputs.documents, (ranked[DROPS], outputs[DROPS]), (counts,))


def _hash_bucket(document: Document, purpose: str) -> int:
    return int(hashing.unit(document.key, purpose) * selection.HASH_BUCKETS)


def _topic_bucket(document: Document, topic: str, purpose: str) -> tuple[tuple[str, int], int]:
    return (str(document.meta.get(topic, _ALL)), _hash_bucket(document, purpose)), 1


def _topic_cuts(_: None, histogram: Iterable[tuple[tuple[str, int], int]], most: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """(topic, first bucket to leave out) for the topics to cut down."""
    by_topic: dict[str, list[tuple[int, int]]] = {}
    for (topic, bucket), count in histogram:
        by_topic.setdefault(topic, []).append((bucket, count))
    counts = {topic: sum(count for _, count in buckets) for topic, buckets in by_topic.items()}
    for topic, wanted in selection.capped_counts(counts, most).items():
        if wanted < counts[topic]:
            yield topic, selection.hash_cut(by_topic[topic], wanted)


class _BelowCut(beam.DoFn):
    """Documents whose hash lies below their topic's cut."""

    def __init__(self, place: int, topic: str, purpose: str) -> None:
        self._place, self._topic, self._purpose = place, topic, purpose

    def process(self, document: Document, found: dict[str, int]) -> Iterable[Any]:
        """One document, and the cuts."""
        topic = str(document.meta.get(self._topic, _ALL))
        if topic not in found or _hash_bucket(document, self._purpose) < found[topic]:
            yield document
        else:
            yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, Dropped(f"downsampled_{topic}")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downsample:
    """Cuts topics down to their greatest share of what stays, by a hash of the document: the same ones in every run.

    Attributes:
      most: topic -> share in [0, 1); other topics keep everything. When all topics are named, their proportions count.
      topic: field that holds the topic.
      seed: another one keeps other documents.
      name: in the card.
    """

    most: Mapping[str, float]
    topic: str = "topic"
    seed: int = 0
    name: str = "downsample"

    def __post_init__(self) -> None:
        if not self.most or not all(0 <= share < 1 for share in self.most.values()) or sum(self.most.values()) > 1 + 1e-9:
            raise ValueError(
                f"the step {self.name!r} has most={dict(self.most)!r}; it needs shares in [0, 1) whose sum is at most 1"
            )

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        purpose = f"downsample {self.seed}"
        documents, counts = counted(documents, place, label)
        histogram = (
            documents
            | f"{label}/bucket" >> beam.Map(_topic_bucket, self.topic, purpose)
            | f"{label}/histogram" >> beam.CombinePerKey(sum)
        )
        pipeline = documents.pipeline
        found = (
            pipeline
            | f"{label}/once" >> beam.Create([None])
            | f"{label}/cut" >> beam.FlatMap(_topic_cuts, beam.pvalue.AsList(histogram), dict(self.most))
        )
        outputs = documents | f"{label}/keep" >> beam.ParDo(
            _BelowCut(place, self.topic, purpose), beam.pvalue.AsDict(found)
        ).with_outputs(DROPS, main="documents")
        return Flow(outputs.documents, (outputs[DROPS],), (counts,))
