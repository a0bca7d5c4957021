"""Dedup of URLs, texts, near-duplicates and lines."""

import itertools
import random

import pytest

from lmx.curation.functions.minhash import MinHash
from lmx.curation.pipelines.keep_one import ExactDedup, UrlDedup
from lmx.curation.pipelines.line_dedup import LineDedup
from lmx.curation.pipelines.near_duplicates import NearDedup, similar_pairs
from lmx.curation.sample import prose


def test_the_newest_version_of_a_url_wins_whatever_its_spelling(run_step, make_document):
    pages = [
        make_document("old", url="http://A.example:80/x?utm_source=f#top", timestamp="2026-01-01T00:00:00Z"),
        make_document("new", url="https://a.example/x", timestamp="2026-03-01T00:00:00Z"),
        make_document("middle", url="https://a.example/y/../x", timestamp="2026-02-01T00:00:00Z"),
        make_document("undated", url="https://a.example/x"),
        make_document("other page", url="https://a.example/z?b=1&a=2"),
        make_document("no url 1"),
        make_document("no url 2"),
        make_document("bad", url="not a url"),
    ]
    result = run_step(UrlDedup(), pages)
    assert result.texts == {"new", "other page", "no url 1", "no url 2"}
    assert {item.url for item in result.documents.values()} == {"https://a.example/x", "https://a.example/z?a=2&b=1", ""}
    reasons = {key: (item.kind, item.reason) for key, item in result.drops.items()}
    assert sorted(reasons.values()) == [("dropped", "older_version")] * 3 + [("set_aside", "ValueError")]
    assert result.counts[1, "in", ""] == 8


def test_equal_texts_are_one_but_for_white_space_and_only_within_a_field(run_step, make_document):
    pages = [make_document("a b\nc", language="en"), make_document("a  b c", language="en"), make_document("a b c.", language="en")]
    pages.append(make_document("a b c", language="de"))
    assert len(run_step(ExactDedup(), pages).documents) == 2
    assert len(run_step(ExactDedup(within="language"), pages).documents) == 3


def test_a_record_that_came_twice_is_kept_once(run_step, make_document):
    page = make_document("some words that are there twice")
    for step in (ExactDedup(), NearDedup(), UrlDedup()):
        result = run_step(step, [page, page])
        assert list(result.documents) == [page.key] and result.counts[1, "in", ""] == 2, step


def versions(key, count, edits):
    """A text and edited versions of it."""
    text = prose.article(key, "science", count=9)
    return ["\n".join(text), *("\n".join(prose.edited(text, f"{key} {n}", edits=edits)) for n in range(count - 1))]


def test_near_duplicates_leave_one_of_each_cluster_and_nothing_else_is_lost(run_step, make_document):
    clusters = [versions(f"cluster {n}", 3, 3) for n in range(6)]
    alone = ["\n".join(prose.article(f"alone {n}", "history", count=9)) for n in range(12)]
    pages = [make_document(text) for text in [*itertools.chain(*clusters), *alone, "?!"]]
    result = run_step(NearDedup(), pages)
    assert [len(result.texts & set(cluster)) for cluster in clusters] == [1] * 6
    assert result.texts >= {*alone, "?!"}
    assert all(item.detail.removeprefix("of ") in result.documents for item in result.drops.values())


def test_likeness_is_followed_over_several_steps(run_step, make_document):
    chain = [prose.article("chain", "travel", count=9)]
    for number in range(4):
        chain.append(prose.edited(chain[-1], f"step {number}", edits=3))
    result = run_step(NearDedup(minhash=MinHash(threshold=0.8)), [make_document("\n".join(text)) for text in chain])
    assert len(result.documents) == 1 and (1, "failed", "not_converged") not in result.counts


def test_pairs_do_not_depend_on_the_order_of_a_bucket_even_beyond_its_memory():
    draw = random.Random(0)
    members = [
        (f"{n:04d}", bytes(draw.choice((0, 1)) * 255 if n % 2 else draw.randrange(256) for _ in range(64))) for n in range(700)
    ]
    members[5:9] = [(key, members[0][1]) for key, _ in members[5:9]]
    expected = sorted(similar_pairs(("b", members), threshold=0.7))
    draw.shuffle(members)
    assert sorted(similar_pairs(("b", members), threshold=0.7)) == expected
    assert ("0005", "0000") in expected


def test_a_line_seen_seven_times_goes_and_one_seen_six_times_stays(run_step, make_document):
    pages = [
        make_document(f"story {word}\nSeen in seven, No. {n}\n" + ("seen in six\n" if n < 6 else ""))
        for n, word in enumerate("abcdefg")
    ]
    result = run_step(LineDedup(), pages)
    assert result.texts == {f"story {word}\nseen in six" if n < 6 else f"story {word}" for n, word in enumerate("abcdefg")}
    assert result.counts[1, "noted", "lines"] == 7


def test_lines_are_counted_within_a_page_too_and_a_page_of_nothing_else_is_dropped(run_step, make_document):
    pages = [make_document("again\n" * 7), make_document("first\n\n\nagain\n\nlast")]
    result = run_step(LineDedup(), pages)
    assert result.texts == {"first\n\nlast"}
    assert [item.reason for item in result.drops.values()] == ["no_line_left"]


def test_lines_are_counted_apart_in_each_bucket(run_step, make_document):
    pages = [make_document(f"page {word}\nshared") for word in "abcdefghijklmnopqrst"]
    assert not any("shared" in text for text in run_step(LineDedup(most=19), pages).texts)  # twenty in one bucket
    assert all("shared" in text for text in run_step(LineDedup(most=19, buckets=2), pages).texts)  # fewer in each of two


@pytest.mark.parametrize("make", [lambda: NearDedup(rounds=0), lambda: LineDedup(most=0), lambda: LineDedup(buckets=0)])
def test_settings_out_of_range_are_told_in_a_sentence(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()
