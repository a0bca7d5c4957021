"""robots.txt asked again when a mixture is built: a site that has opted out since leaves with all its pages."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from lmx.curation.document import Document, drop, set_aside
from lmx.curation.functions import robots, urls
from lmx.curation.pipelines.flow import DROPS, Flow, counted, label_of
from lmx.curation.pipelines.source import Source, read_documents


class _ByOrigin(beam.DoFn):
    """(host, document); a document whose URL is none is set aside."""

    def __init__(self, place: int) -> None:
        self._place = place

    def process(self, document: Document) -> Iterable[Any]:
        """One document."""
        try:
            yield urls.origin(document.url), document
        except ValueError as error:
            yield beam.pvalue.TaggedOutput(DROPS, set_aside(self._place, document, error))


class _Recheck(beam.DoFn):
    """The pages of a host that its newest robots.txt allows."""

    def __init__(self, place: int, rules: robots.RobotsRules) -> None:
        self._place, self._rules = place, rules

    def process(self, joined: tuple[str, dict[str, Iterable[Document]]]) -> Iterable[Any]:
        """One host."""
        _, groups = joined
        newest = max(groups["snapshots"], key=lambda snapshot: (snapshot.timestamp, snapshot.key), default=None)
        for document in groups["documents"]:
            refused = None
            if newest is not None:
                text = newest.html or newest.text
                refused = robots.verdict(document.url, text, newest.robots_status, self._rules)
            if refused is None:
                yield document
            else:
                yield beam.pvalue.TaggedOutput(DROPS, drop(self._place, document, refused))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobotsRecheck:
    """Drops pages that their site's newest robots.txt excludes; sites without one pass.

    Attributes:
      snapshots: where later robots.txt files are read: documents with the URL of a robots.txt, its text, and its status in
        `robots_status`.
      rules: who asks.
      name: in the card.
    """

    snapshots: Source
    rules: robots.RobotsRules = robots.RobotsRules()
    name: str = "robots_recheck"

    def check(self) -> None:
        """Raises ValueError when the snapshots can't be found."""
        self.snapshots.check()

    def expand(self, documents: Any, place: int) -> Flow:
        """As `CorpusStep.expand`."""
        label = label_of(place, self.name)
        documents, counts = counted(documents, place, label)
        read = read_documents(documents.pipeline, self.snapshots, label=f"{label}/snapshots", place=place, kind="unread")
        pages = documents | f"{label}/host" >> beam.ParDo(_ByOrigin(place)).with_outputs(DROPS, main="keyed")
        files = read.documents | f"{label}/snapshot's host" >> beam.ParDo(_ByOrigin(place)).with_outputs(DROPS, main="keyed")
        outputs = (
            {"documents": pages.keyed, "snapshots": files.keyed}
            | f"{label}/join" >> beam.CoGroupByKey()
            | f"{label}/ask" >> beam.ParDo(_Recheck(place, self.rules)).with_outputs(DROPS, main="documents")
        )
        unread = files[DROPS] | f"{label}/no host" >> beam.Map(dataclasses.replace, kind="unread")
        return Flow(outputs.documents, (pages[DROPS], outputs[DROPS], *read.drops, unread), (counts,))
