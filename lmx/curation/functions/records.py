"""Raw records to documents: what a reader hands over is checked here, once."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lmx.curation.document import Document, Value


class Malformed(ValueError):
    """A record that can't be read; `reason` is one of a few words that can be counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of the fields of a JSON record; a record has a page or a text.

    Attributes:
      url: of the page; may be missing where there is a text.
      html: the page.
      text: a text that needs no extraction.
      timestamp: ISO 8601, "YYYYMMDDhhmmss" or seconds since 1970; may be missing.
      robots: the site's robots.txt when the page was fetched; may be missing or null.
      robots_status: HTTP status of robots.txt; may be missing or null.
      keep: fields that go into the document's `meta` when they hold a text or a number.
    """

    url: str = "url"
    html: str = "html"
    text: str = "text"
    timestamp: str = "timestamp"
    robots: str = "robots"
    robots_status: str = "robots_status"
    keep: tuple[str, ...] = ()


def document_key(*parts: str) -> str:
    """32 hex digits of all that makes a record."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def normal_timestamp(value: object) -> str:
    """A point in time as "2026-01-02T03:04:05Z", "" for None.

    Raises:
      Malformed: it is none of the known forms.
    """
    if value is None or value == "":
        return ""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.datetime.fromtimestamp(value, datetime.UTC)
        elif isinstance(value, str) and len(value) == 14 and value.isdigit():
            moment = datetime.datetime.strptime(value, "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
        elif isinstance(value, str):
            moment = datetime.datetime.fromisoformat(value)
        else:
            raise ValueError(f"a {type(value).__name__}")
    except (ValueError, OverflowError, OSError) as error:
        raise Malformed("bad_timestamp", f"timestamp {str(value)[:60]!r} is not a point in time: {error}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    try:
        return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError as error:
        raise Malformed("bad_timestamp", f"timestamp {str(value)[:60]!r} is out of range") from error


def from_json(line: bytes, fields: Fields) -> Document:
    """The document of a JSON line.

    Raises:
      Malformed: the line is not a JSON object in UTF-8, or lacks what a document needs.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("not_utf8", f"byte {error.start} is not UTF-8") from error
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("not_json", f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Malformed("not_an_object", f"expected a JSON object, found {type(row).__name__}")
    return from_row(row, fields)


def from_row(row: Mapping[str, Any], fields: Fields) -> Document:
    """The document of a row.

    Raises:
      Malformed: the row lacks what a document needs.
    """
    url = _text(row, fields.url)
    html, text = _text(row, fields.html), _text(row, fields.text)
    if html is None and text is None:
        raise Malformed(
            "no_content", f"neither {fields.html!r} nor {fields.text!r} is there; it has {', '.join(map(repr, row)) or 'nothing'}"
        )
    if html and not url:
        raise Malformed("no_url", f"a page needs its {fields.url!r}")
    status = row.get(fields.robots_status)
    if status is not None and (isinstance(status, bool) or not isinstance(status, int)):
        raise Malformed("bad_status", f"{fields.robots_status!r} is {str(status)[:60]!r}, not a HTTP status")
    timestamp = normal_timestamp(row.get(fields.timestamp))
    meta = {name: row[name] for name in fields.keep if isinstance(row.get(name), str | int | float)}
    return Document(
        key=document_key(url or "", timestamp, html or "", text or ""),
        url=url or "",
        timestamp=timestamp,
        text="" if html else _clean(text or ""),
        html=html or "",
        robots=_text(row, fields.robots),
        robots_status=status,
        meta=meta,
    )


def _text(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Malformed("bad_field", f"{field!r} holds {type(value).__name__}, not text")
    return value


def _clean(text: str) -> str:
    """The text with lone surrogates, which UTF-8 can't hold, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_row(document: Document) -> bytes:
    """The output record of a document: a JSON object with "text" first, as `lmx.data.sources.ArrayRecords` reads it."""
    row: dict[str, Value] = {"text": document.text, "url": document.url, "timestamp": document.timestamp, "key": document.key}
    row |= {name: document.meta[name] for name in sorted(document.meta) if name not in row}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
