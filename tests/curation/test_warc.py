"""WARC files, whole and damaged."""

import gzip
import io
import zlib

import pytest

from lmx.curation.functions import warc
from lmx.curation.functions.records import Malformed
from lmx.curation.pipelines.source import warc_records


def record(url, body, *, kind="response", status="200 OK", headers=(), date="2026-01-02T03:04:05Z", charset="; charset=utf-8"):
    fields = [f"Content-Type: text/html{charset}", *headers]
    block = f"HTTP/1.1 {status}\r\n".encode() + "\r\n".join(fields).encode() + b"\r\n\r\n" + body
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {date}\r\nContent-Length: {len(block)}\r\n\r\n"
    return head.encode() + block + b"\r\n\r\n"


def pages(data):
    return [content for _, content in warc_records("x.warc", io.BytesIO(data)) if content is not None]


def urls(data):
    return [page.url for page in pages(data) if hasattr(page, "url")]


def reasons(data):
    return [page.reason for page in pages(data) if hasattr(page, "reason")]


TWO = [record("https://a.example/1", b"<p>one"), record("https://a.example/2", "<p>zwei ä".encode())]


def test_responses_become_documents_with_url_time_and_page():
    for data in (b"".join(TWO), b"".join(map(gzip.compress, TWO)), gzip.compress(b"".join(TWO))):
        first, second = pages(data)
        assert (first.url, first.timestamp, first.html) == ("https://a.example/1", "2026-01-02T03:04:05Z", "<p>one")
        assert second.html == "<p>zwei ä"


@pytest.mark.parametrize(
    "other",
    [
        record("https://a.example/x", b"x", kind="request"),
        record("https://a.example/x", b"x", status="404 Not Found"),
        record("dns:a.example", b"x"),
        record("https://a.example/x.png", b"x").replace(b"text/html; charset=utf-8", b"image/png; charset=utf-8"),
    ],
)
def test_records_that_are_no_pages_are_passed_over(other):
    assert urls(TWO[0] + other + TWO[1]) == ["https://a.example/1", "https://a.example/2"]
    assert reasons(other) == []


def test_robots_txt_is_kept_with_its_status():
    [page] = pages(record("https://a.example/robots.txt", b"User-agent: *", status="503 Busy"))
    assert (page.html, page.robots_status) == ("User-agent: *", 503)


def test_bodies_are_decoded_from_gzip_deflate_and_chunks():
    body = b"<p>hello"
    for headers, data in (
        (("Content-Encoding: gzip",), gzip.compress(body)),
        (("Content-Encoding: deflate",), zlib.compress(body)),
        (("Transfer-Encoding: chunked",), b"3\r\n<p>\r\n5;x=y\r\nhello\r\n0\r\n\r\n"),
        (("Transfer-Encoding: chunked",), body),  # stored decoded under the old header
    ):
        assert pages(record("https://a.example/", data, headers=headers))[0].html == "<p>hello"


def test_charsets_come_from_the_server_the_page_or_the_bytes():
    latin = record("https://a.example/", "<p>ä".encode("latin-1"), charset="; charset=latin1")
    named = record("https://a.example/", '<meta charset="koi8-r"><p>да'.encode("koi8-r"), charset="")
    wrong = record("https://a.example/", "<p>ä".encode(), charset="; charset=nonsense")
    assert pages(latin)[0].html == "<p>ä" and pages(named)[0].html.endswith("да") and pages(wrong)[0].html == "<p>ä"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda first, second: first + b"garbage\r\n\r\nmore" + b"\n" + second, "warc_damaged"),
        (lambda first, second: first.replace(b"Content-Length: ", b"Content-Length: x") + second, "warc_damaged"),
        (lambda first, second: first.replace(b"HTTP/1.1 200 OK", b"SPDY/1.1 200 OK") + second, "bad_response"),
        (lambda first, second: record("https://a.example/b", b"x", headers=("Content-Encoding: br",)) + second, "bad_response"),
        (lambda first, second: record("https://a.example/b", b"x", headers=("Content-Encoding: gzip",)) + second, "bad_response"),
        (lambda first, second: record("https://a.example/b", b"x", date="never") + second, "bad_timestamp"),
    ],
)
def test_a_broken_record_is_told_and_the_next_one_is_read(damage, reason):
    data = damage(*TWO)
    assert reason in reasons(data)
    assert urls(data)[-1] == "https://a.example/2"


def test_a_damaged_gzip_member_costs_one_record():
    members = [bytearray(gzip.compress(item)) for item in (TWO[0], *TWO)]
    members[1][20:30] = b"\xff" * 10
    data = b"".join(map(bytes, members))
    assert urls(data)[-1] == "https://a.example/2" and "warc_damaged" in reasons(data)


def test_a_file_that_ends_in_a_record_gives_the_others():
    data = b"".join(TWO)[:-20]
    assert urls(data) == ["https://a.example/1"] and reasons(data) == ["warc_cut_short"]
    assert pages(b"") == [] and reasons(b"no warc at all") == ["warc_damaged"]


def test_a_response_without_an_address_is_malformed():
    [(headers, block)] = warc.records(io.BytesIO(TWO[0].replace(b"WARC-Target-URI", b"X-Other")))
    with pytest.raises(Malformed, match="no WARC-Target-URI"):
        warc.page(headers, block)
