"""What flows through a curation: documents, what a step makes of one, and what a step is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

Value = str | int | float


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One page, before and after its text is extracted.

    Attributes:
      key: 32 hex digits made from everything that was read (`functions.records.document_key`); equal keys are equal records.
      url: as fetched, and normalised once URLs have been compared; "" for a text without one.
      timestamp: when it was fetched, "2026-01-02T03:04:05Z"; "" when unknown, which counts as older than any.
      text: the body; "" before extraction.
      html: the page; "" once its text has been taken.
      robots: the site's robots.txt as it was when the page was fetched, None when it was not kept.
      robots_status: HTTP status with which robots.txt was answered, None = it was 200 or is unknown.
      meta: what steps found out: title, language, scores, topic; becomes fields of the output rows.
    """

    key: str
    url: str
    timestamp: str
    text: str = ""
    html: str = ""
    robots: str | None = None
    robots_status: int | None = None
    meta: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    def tell(self, **found: Value) -> "Document":
        """The document with values added to its `meta`."""
        return dataclasses.replace(self, meta={**self.meta, **found})


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A step's decision against a document.

    Attributes:
      reason: one of a few words that can be counted ("few_words").
      detail: what was found in this document ("12 words, at least 50").
    """

    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """A document that a step altered, with how often it altered what ({"email": 2})."""

    document: Document
    counts: Mapping[str, int]


Outcome = Document | Changed | Dropped


class DocumentStep(Protocol):
    """A step that looks at one document at a time: a frozen dataclass whose fields are its settings."""

    @property
    def name(self) -> str:
        """Unique in its curation; names the step in the card and in overrides."""

    def open(self) -> Callable[[Document], Outcome]:
        """The function of a document; loads what it needs, once a worker. It must depend on the document alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """A record that left a curation.

    Attributes:
      step: place of the step, counted from 0 = reading.
      kind: "dropped" by decision; "set_aside" because the record could not be processed; "unread" for such a record that is no
        document of the corpus, but something a step reads beside it.
      reason: as in `Dropped`; for "set_aside" the kind of failure.
      detail: what was found.
      key: the document's, or a hash of the raw record.
      url: the document's, or where the raw record stands.
      excerpt: beginning of the text or of the raw record.
    """

    step: int
    kind: str
    reason: str
    detail: str
    key: str
    url: str
    excerpt: str


EXCERPT = 300  # characters of a dropped document that are kept for the report
RAW_EXCERPT = 2_000  # characters of a record that could not be read: enough to find out why


def drop(step: int, document: Document, decision: Dropped) -> Drop:
    """The record of a step's decision against a document."""
    text = document.text or document.html
    return Drop(step, "dropped", decision.reason, decision.detail, document.key, document.url, text[:EXCERPT])


def set_aside(step: int, document: Document, error: BaseException) -> Drop:
    """The record of a document with which a step failed."""
    text = document.text or document.html
    detail = f"{type(error).__name__}: {error}"[:EXCERPT]
    return Drop(step, "set_aside", type(error).__name__, detail, document.key, document.url, text[:RAW_EXCERPT])


def field(document: Document, name: str, asked_by: str) -> Any:
    """A value of `meta`.

    Raises:
      ValueError: no earlier step has set it.
    """
    if name not in document.meta:
        raise ValueError(
            f"{asked_by} reads the field {name!r}, which no step before it has set; the document has "
            f"{', '.join(sorted(document.meta)) or 'none'}"
        )
    return document.meta[name]
