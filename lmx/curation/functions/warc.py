"""WARC files (ISO 28500), plain or gzipped: pages out of HTTP responses, a broken record at a time set apart."""

import email.message
import email.parser
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from lmx.curation.document import Document
from lmx.curation.functions.records import Malformed, document_key, normal_timestamp

_VERSION = b"WARC/"
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b\x08"
_MOST_BYTES = 1 << 28  # of one record; a greater length is a damaged header


class _Buffer:
    """Bytes of a stream, gzipped or not, with as much looked at beforehand as is asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._raw = stream.read(_CHUNK)
        self._gzipped = self._raw.startswith(_GZIP)
        self._decompressor = zlib.decompressobj(wbits=31) if self._gzipped else None
        self.data = bytearray()
        self.broken: str | None = None

    def fill(self, size: int) -> bool:
        """Has at least `size` bytes in `data`; False when the stream ends before."""
        while len(self.data) < size and self._more():
            pass
        return len(self.data) >= size

    def _more(self) -> bool:
        if not self._raw:
            self._raw = self._stream.read(_CHUNK)
        if not self._raw:
            return False
        if self._decompressor is None:
            self.data += self._raw
            self._raw = b""
            return True
        try:
            self.data += self._decompressor.decompress(self._raw)
        except zlib.error as error:
            self.broken = str(error)
            self._next_member(self._raw[1:])
            return True
        if self._decompressor.eof:
            self._next_member(self._decompressor.unused_data)
        else:
            self._raw = b""
        return True

    def _next_member(self, rest: bytes) -> None:
        """Goes on at the next gzip member, which in a WARC file is the next record."""
        while (place := rest.find(_GZIP)) < 0:
            more = self._stream.read(_CHUNK)
            if not more:
                self._raw = b""
                return
            rest = rest[-2:] + more
        self._raw = rest[place:]
        self._decompressor = zlib.decompressobj(wbits=31)

    def take(self, size: int) -> bytes:
        part = bytes(self.data[:size])
        del self.data[:size]
        return part


def records(stream: BinaryIO) -> Iterator[tuple[email.message.Message, bytes] | Malformed]:
    """Headers and block of each record; what can't be read comes as the error, and reading goes on behind it."""
    buffer = _Buffer(stream)
    while True:
        skipped = _find_record(buffer)
        if skipped or buffer.broken:
            detail = f"; {buffer.broken}" if buffer.broken else ""
            buffer.broken = None
            yield Malformed("warc_damaged", f"{skipped} bytes that belong to no record were passed over{detail}")
        if not buffer.data:
            return
        yield _record(buffer)


def _find_record(buffer: _Buffer) -> int:
    """Drops what stands before the next record; the number of bytes other than line ends that it dropped."""
    skipped = 0
    while buffer.fill(len(_VERSION)) or buffer.data:
        blank = len(buffer.data) - len(buffer.data.lstrip(b"\r\n"))
        if blank:
            del buffer.data[:blank]
        elif buffer.data.startswith(_VERSION):
            return skipped
        else:
            place = buffer.data.find(b"\n" + _VERSION)
            step = place + 1 if place >= 0 else max(len(buffer.data) - len(_VERSION), 1)
            skipped += step
            del buffer.data[:step]
    return skipped


def _record(buffer: _Buffer) -> tuple[email.message.Message, bytes] | Malformed:
    end = -1
    size = _CHUNK >> 8
    while end < 0:
        enough = buffer.fill(size)
        end = buffer.data.find(b"\r\n\r\n")
        if end < 0 and (not enough or size > _CHUNK):
            buffer.take(len(_VERSION))
            return Malformed("warc_damaged", "a record's header has no end")
        size *= 2
    header = buffer.take(end + 4)
    headers = email.parser.BytesHeaderParser().parsebytes(header.partition(b"\n")[2])
    length = headers.get("Content-Length", "").strip()
    if not length.isdigit() or int(length) > _MOST_BYTES:
        return Malformed("warc_damaged", f"a record's Content-Length is {length[:40]!r}")
    if not buffer.fill(int(length)):
        missing = int(length) - len(buffer.data)
        buffer.take(len(buffer.data))
        return Malformed("warc_cut_short", f"the last record lacks {missing} of its {length} bytes")
    return headers, buffer.take(int(length))


def page(headers: email.message.Message, block: bytes) -> Document | None:
    """The document of a record; None for anything but the response with which a page (or a robots.txt) came.

    A robots.txt is kept as a document whose `html` is its text, whatever its status.

    Raises:
      Malformed: the response can't be decoded.
    """
    if headers.get("WARC-Type", "").strip() != "response":
        return None
    url = headers.get("WARC-Target-URI", "").strip().strip("<>")
    if not url:
        raise Malformed("no_url", "a response has no WARC-Target-URI")
    if not url.lower().startswith(("http://", "https://")):
        return None
    head, _, body = block.partition(b"\r\n\r\n")
    status_line, _, fields = head.partition(b"\r\n")
    words = status_line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Malformed("bad_response", f"{url} was not answered in HTTP: {status_line[:60]!r}")
    status = int(words[1])
    http = email.parser.BytesHeaderParser().parsebytes(fields)
    is_robots = url.partition("?")[0].endswith("/robots.txt")
    kind = http.get_content_type() if "Content-Type" in http else ""
    if not is_robots and (status != 200 or kind not in ("text/html", "application/xhtml+xml", "")):
        return None
    text = _decoded(_body(http, body, url), http.get_content_charset(), is_robots=is_robots)
    timestamp = normal_timestamp(headers.get("WARC-Date", "").strip())
    key = document_key(url, timestamp, text, "")
    return Document(key=key, url=url, timestamp=timestamp, html=text, robots_status=status if is_robots else None)


def _body(http: email.message.Message, body: bytes, url: str) -> bytes:
    if "chunked" in http.get("Transfer-Encoding", "").lower():
        body = _dechunked(body)
    encoding = http.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Malformed("bad_response", f"{url}: the body is encoded as {encoding!r}; gzip and deflate are read")
    bits = 47 if encoding != "deflate" else 15 if body[:1] == b"\x78" else -15  # deflate comes with zlib's header and without
    try:
        decoded = zlib.decompressobj(wbits=bits).decompress(body)  # of a body that was cut short, what there is
    except zlib.error as error:
        raise Malformed("bad_response", f"{url}: the body is not {encoding}: {error}") from error
    if body and not decoded:
        raise Malformed("bad_response", f"{url}: the body is not {encoding}: it holds nothing")
    return decoded


def _dechunked(body: bytes) -> bytes:
    """The body without HTTP's chunk lengths; as it is when it has none (many crawlers store it decoded under the old header)."""
    parts: list[bytes] = []
    place = 0
    while True:
        end = body.find(b"\r\n", place)
        try:
            size = int(body[place:end].partition(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0 or end + 2 + size > len(body):
            return body
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        place = end + 2 + size + 2


def _decoded(body: bytes, charset: str | None, *, is_robots: bool) -> str:
    """The body as text: the charset that the server named, the one that the page names, UTF-8, or else Latin-1."""
    named = charset
    if named is None and not is_robots:
        place = body[:2048].lower().find(b"charset=")
        if place >= 0:
            named = (
                body[place + 8 : place + 48]
                .strip(b"\"' ")
                .split(b'"')[0]
                .split(b"'")[0]
                .split(b">")[0]
                .split(b" ")[0]
                .decode("ascii", "replace")
            )
    for encoding in (named, "utf-8", "cp1252"):
        try:
            return body.decode(encoding) if encoding else body.decode("utf-8")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return body.decode("latin-1")
