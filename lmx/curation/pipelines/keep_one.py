"""One document of each group of equals: pages of one URL, texts that are the same."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam

from lmx.curation.document import Document, Drop, Dropped, drop, field, set_aside
from lmx.curation.functions import urls
from lmx.curation.functions.records import document_key
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of

Key = Callable[[Document], str]
Rank = Callable[[Document], tuple[str, ...]]


class _KeyBy(beam.DoFn):
    """(key, document); a document that has no key is set aside."""

    def __init__(self, place: int, key: Key) -> None:
        self._place, self._key = place, key

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        try:
            yield self._key(document), document
        except ValueError as error:
            yield beam.pvalue.TaggedOutput(DROPS, set_aside(self._place, document, error))


class _KeepBest(beam.DoFn):
    """The document of greatest rank; the others leave. Two passes over the group, so a huge one needs no memory."""

    def __init__(self, place: int, rank: Rank, reason: str) -> None:
        self._place, self._rank, self._reason = place, rank, reason

    def process(self, group: tuple[str, Iterable[Document]]) -> Iterable[Any]:
        """One group."""
        _, documents = group
        best = max(documents, key=self._rank)
        kept = False
        for document in documents:
            if not kept and document.key == best.key:
                kept = True
                yield document
            else:
                yield beam.pvalue.TaggedOutput(DROPS, self._drop(document, best))

    def _drop(self, document: Document, best: Document) -> Drop:
        return drop(
            self._place, document, Dropped(self._reason, f"kept: {best.url or best.key} of {best.timestamp or 'unknown time'}")
        )


def keep_one(documents: Any, place: int, name: str, *, key: Key, rank: Rank, reason: str) -> Flow:
    """Adds to the graph: of all documents with an equal key, the one of greatest rank.

    Args:
      documents: PCollection of Document.
      place: the step's.
      name: the step's.
      key: what equals share; ValueError sets a document aside.
      rank: must tell any two documents apart that aren't equal in all things.
      reason: of the drops.
    """
    label = label_of(place, name)
    documents, counts = counted(documents, place, label)
    keyed = documents | f"{label}/key" >> beam.ParDo(_KeyBy(place, key)).with_outputs(DROPS, main="keyed")
    outputs = (
        keyed.keyed
        | f"{label}/group" >> beam.GroupByKey()
        | f"{label}/keep" >> beam.ParDo(_KeepBest(place, rank, reason)).with_outputs(DROPS, main="documents")
    )
    return Flow(outputs.documents, (keyed[DROPS], outputs[DROPS]), (counts,))


def newest(document: Document) -> tuple[str, ...]:
    """By time of fetching, then by key."""
    return document.timestamp, document.key


def by_key(document: Document) -> tuple[str, ...]:
    """By key, which is as good as chance."""
    return (document.key,)


def _url_key(document: Document, rules: urls.UrlRules) -> str:
    return urls.normalize(document.url, rules) if document.url else f"no URL: {document.key}"


def _with_normal_url(document: Document, rules: urls.UrlRules) -> Document:
    return dataclasses.replace(document, url=urls.normalize(document.url, rules)) if document.url else document


@dataclasses.dataclass(frozen=True, kw_only=True)
class UrlDedup:
    """One version of every page: the newest. Kept documents get their URL in its normal form; texts without a URL pass.

    Attributes:
      rules: which differences between URLs don't count.
      name: in the card.
    """

    rules: urls.UrlRules = urls.UrlRules()
    name: str = "url_dedup"

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        key = functools.partial(_url_key, rules=self.rules)
        flow = keep_one(documents, place, self.name, key=key, rank=newest, reason="older_version")
        renamed = flow.documents | f"{label_of(place, self.name)}/rename" >> beam.Map(_with_normal_url, self.rules)
        return dataclasses.replace(flow, documents=renamed)


def _text_key(document: Document, within: str | None) -> str:
    group = str(field(document, within, "exact dedup")) if within else ""
    return document_key(group, " ".join(document.text.split()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactDedup:
    """One of the documents whose texts are equal but for white space.

    Attributes:
      within: compare only documents with an equal value of this field, such as "language"; None = all.
      name: in the card.
    """

    within: str | None = None
    name: str = "exact_dedup"

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        key = functools.partial(_text_key, within=self.within)
        return keep_one(documents, place, self.name, key=key, rank=by_key, reason="same_text")
