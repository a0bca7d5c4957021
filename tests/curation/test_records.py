"""Raw records: what is read, and the reason for which a broken one is set aside."""

import json

import pytest

from lmx.curation.functions.records import Fields, Malformed, document_key, from_json, normal_timestamp, to_row


def line(**row):
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"url": "https://a.example", "html": "<p>', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"text": "\xff"}', "not_utf8"),
        (b'["a"]', "not_an_object"),
        (b"{}", "no_content"),
        (line(html="<p>x"), "no_url"),
        (line(url=5, text="x"), "bad_field"),
        (line(url="https://a.example", html=["x"]), "bad_field"),
        (line(text="x", timestamp="yesterday"), "bad_timestamp"),
        (line(text="x", timestamp=1e300), "bad_timestamp"),
        (line(text="x", timestamp=True), "bad_timestamp"),
        (line(text="x", robots_status="503"), "bad_status"),
    ],
)
def test_a_broken_record_has_a_reason(record, reason):
    with pytest.raises(Malformed) as caught:
        from_json(record, Fields())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05Z"),
        ("2026-01-02", "2026-01-02T00:00:00Z"),
        ("20260102030405", "2026-01-02T03:04:05Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_points_in_time_have_one_form(value, expected):
    assert normal_timestamp(value) == expected


def test_fields_can_have_other_names_and_be_kept():
    document = from_json(
        line(address="https://a.example", body="text", score=3, tags=["a"]),
        Fields(url="address", text="body", keep=("score", "tags")),
    )
    assert (document.url, document.text, document.meta) == ("https://a.example", "text", {"score": 3})


def test_equal_records_have_equal_keys_and_others_have_not():
    a, b, c = (from_json(line(text=text, timestamp=when), Fields()) for text, when in (("x", 1), ("x", 1), ("x", 2)))
    assert a.key == b.key != c.key
    assert document_key("ab", "c") != document_key("a", "bc")


def test_an_output_row_has_the_text_and_what_was_found():
    document = from_json(line(text="naïve\n", url="https://a.example"), Fields()).tell(language="en", quality=0.5)
    row = json.loads(to_row(document))
    assert row == {
        "text": "naïve\n",
        "url": "https://a.example",
        "timestamp": "",
        "key": document.key,
        "language": "en",
        "quality": 0.5,
    }
    assert list(row)[0] == "text"


def test_a_lone_surrogate_does_not_reach_the_output():
    assert to_row(from_json(b'{"text": "a\\ud800b"}', Fields())).decode().startswith('{"text":"a?b"')
