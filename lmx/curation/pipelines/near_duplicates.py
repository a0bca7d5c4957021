"""Near-duplicate removal: MinHash signatures, bands, verified pairs, connected components, one document of each."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from lmx.curation.document import Document, Dropped, drop, field
from lmx.curation.functions import minhash as minhashing
from lmx.curation.pipelines import components
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of

_MOST_UNLIKE = 256  # members of a bucket, unlike its first, that are compared with each other
_Member = tuple[str, bytes]  # key and sketch


class _Bands(beam.DoFn):
    """(band's key, (document's key, sketch)) for each band of a document."""

    def __init__(self, config: minhashing.MinHash, within: str | None) -> None:
        self._config, self._within = config, within

    def process(self, document: Document) -> Iterable[tuple[str, _Member]]:
        """One document; one without words has no bands."""
        grams = minhashing.shingles(document.text, self._config.shingle)
        if not len(grams):
            return
        group = f"{field(document, self._within, 'near-duplicate removal')}/" if self._within else ""
        signed = minhashing.signature(grams, self._config)
        member = (document.key, minhashing.sketch(signed))
        for key in minhashing.band_keys(signed, self._config):
            yield group + key, member


def similar_pairs(bucket: tuple[str, Iterable[_Member]], *, threshold: float) -> Iterator[components.Edge]:
    """(member, smaller member) for members of a bucket that are similar enough.

    All are compared with the least key; those unlike it, with the least among themselves, and so on, up to a fixed number of
    them, chosen by key. Two passes over the bucket, so a huge one needs no memory.
    """
    _, members = bucket
    first = min(members)
    unlike: list[_Member] = []
    for member in members:
        if member[0] == first[0]:
            continue
        if minhashing.sketch_similarity(member[1], first[1]) >= threshold:
            yield member[0], first[0]
        else:
            unlike.append(member)
            if len(unlike) > 2 * _MOST_UNLIKE:  # the least ones, whatever the order they come in
                unlike = sorted(unlike)[:_MOST_UNLIKE]
    unlike = sorted(unlike)[:_MOST_UNLIKE]
    while len(unlike) > 1:
        first, *rest = unlike
        unlike = []
        for member in rest:
            if minhashing.sketch_similarity(member[1], first[1]) >= threshold:
                yield member[0], first[0]
            else:
                unlike.append(member)


class _KeepRoots(beam.DoFn):
    """Documents joined with the root of their component: a document with a root other than itself leaves."""

    def __init__(self, place: int) -> None:
        self._place = place

    def process(self, joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterable[Any]:
        """The documents of one key (one, unless equal records came twice) and its root."""
        _, groups = joined
        root = next(iter(groups["roots"]), None)
        for number, document in enumerate(groups["documents"]):
            if root is not None:
                yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, Dropped("near_duplicate", f"of {root}")))
            elif number:
                yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, Dropped("same_record")))
            else:
                yield document


def _failed(number: int, place: int) -> tuple[tuple[int, str, str], int]:
    return (place, "failed", "not_converged"), number


def _by_key(document: Document) -> tuple[str, Document]:
    return document.key, document


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDedup:
    """One of the documents that are alike, over any number of steps from like to like.

    Attributes:
      minhash: what is alike.
      within: compare only documents with an equal value of this field, such as "language"; None = all.
      rounds: of the search for components; too few are found out, and stop the run before anything is published.
      name: in the card.
    """

    minhash: minhashing.MinHash = minhashing.MinHash()
    within: str | None = None
    rounds: int = 5
    name: str = "near_dedup"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"the step {self.name!r} has rounds={self.rounds}; at least 1 is needed, 5 is plenty for web text")

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        edges = (
            documents
            | f"{label}/bands" >> beam.ParDo(_Bands(self.minhash, self.within))
            | f"{label}/buckets" >> beam.GroupByKey()
            | f"{label}/similar" >> beam.FlatMap(similar_pairs, threshold=self.minhash.threshold)
            | f"{label}/distinct pairs" >> beam.Distinct()
        )
        roots, misfits = components.connected_components(edges, rounds=self.rounds, label=label)
        failures = misfits | f"{label}/failures" >> beam.Map(_failed, place)
        keyed = documents | f"{label}/key" >> beam.Map(_by_key)
        outputs = (
            {"documents": keyed, "roots": roots}
            | f"{label}/join" >> beam.CoGroupByKey()
            | f"{label}/keep" >> beam.ParDo(_KeepRoots(place)).with_outputs(DROPS, main="documents")
        )
        return Flow(outputs.documents, (outputs[DROPS],), (counts, failures))
