"""Token distributions, shares of the best, topics cut down."""

import math
from collections import Counter

import pytest

from lmx.curation.functions import distribution, selection
from lmx.curation.pipelines.select import Downsample, KeepShare
from lmx.curation.pipelines.token_distribution import TokenDistribution
from lmx.curation.sample import prose


def test_divergence_is_that_of_the_formula_and_0_for_the_corpus_itself():
    counts, corpus = {"a": 1, "b": 3}, {"a": 5, "b": 2, "c": 3}
    q = {token: (count + 0.5) / (10 + 0.5 * 4) for token, count in corpus.items()}
    expected = 0.25 * math.log(0.25 / q["a"]) + 0.75 * math.log(0.75 / q["b"])
    assert distribution.divergence(counts, corpus, total=10, epsilon=0.5) == pytest.approx(expected)
    assert distribution.divergence(corpus, corpus, total=10, epsilon=1e-12) == pytest.approx(0, abs=1e-9)
    assert distribution.divergence({}, corpus, total=10, epsilon=1.0) == 0.0
    unseen = distribution.divergence({"z": 1}, corpus, total=10, epsilon=0.5)
    assert unseen == pytest.approx(-math.log(0.5 / 12))


def test_documents_of_outlier_tokens_are_dropped_and_others_are_told_their_divergence(run_step, make_document):
    good = [make_document("\n".join(prose.article(f"d {n}", "science"))) for n in range(20)]
    bad = make_document("\n".join(prose.garbage("g")))
    result = run_step(TokenDistribution(most=1.5), [*good, bad])
    assert list(result.drops) == [bad.key] and len(result.documents) == 20
    counts = Counter(token for page in [*good, bad] for token in distribution.tokens(page.text))
    for page in good:
        expected = distribution.divergence(Counter(distribution.tokens(page.text)), counts, total=counts.total(), epsilon=1.0)
        assert result.documents[page.key].meta["divergence"] == pytest.approx(expected, abs=1e-4)


def test_buckets_grow_with_the_score():
    scores = [-math.inf, -1e9, -2.0, -1.0, -1e-9, 0.0, 1e-9, 0.1, 0.2, 1.0, 1e9, math.inf]
    buckets = [selection.score_bucket(score) for score in scores]
    assert buckets == sorted(buckets) and len(set(buckets)) == len(buckets) and buckets[-1] < selection.BUCKETS
    with pytest.raises(ValueError, match="not a number"):
        selection.score_bucket(math.nan)


def test_the_best_share_is_kept_of_all_or_within_a_field(run_step, make_document):
    pages = [make_document(f"page {n}", quality=n / 100, language="en" if n < 60 else "de") for n in range(100)]
    best = run_step(KeepShare(score="quality", share=0.3), pages)
    assert {item.meta["quality"] for item in best.documents.values()} == {n / 100 for n in range(70, 100)}
    within = run_step(KeepShare(score="quality", share=0.5, within="language"), pages)
    assert {item.meta["quality"] for item in within.documents.values()} == {n / 100 for n in [*range(30, 60), *range(80, 100)]}
    lowest = run_step(KeepShare(score="quality", share=0.1, lowest=True), [*pages, make_document("no score")])
    assert {item.meta["quality"] for item in lowest.documents.values()} == {n / 100 for n in range(11)} - {0.1}
    assert Counter((item.kind, item.reason) for item in lowest.drops.values())["set_aside", "ValueError"] == 1


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ({"a": 800, "b": 100, "c": 100}, {"a": 0.5}, {"a": 200, "b": 100, "c": 100}),
        ({"a": 10, "b": 100}, {"a": 0.5}, {"a": 10, "b": 100}),
        ({"a": 800, "b": 800, "c": 100}, {"a": 0.25, "b": 0.25}, {"a": 50, "b": 50, "c": 100}),
        ({"a": 800, "b": 100}, {"a": 0.6, "b": 0.4}, {"a": 150, "b": 100}),
        ({"a": 800, "b": 10, "c": 100}, {"a": 0.0, "b": 0.3}, {"a": 0, "b": 10, "c": 100}),
        ({}, {"a": 0.5}, {}),
    ],
)
def test_topics_are_cut_so_that_none_has_more_than_its_share(counts, most, expected):
    assert selection.capped_counts(counts, most) == expected


def test_downsampling_reaches_its_shares_by_hash_alone(run_step, make_document):
    pages = [make_document(f"page {n}", topic="arts" if n < 700 else "science") for n in range(1000)]
    result = run_step(Downsample(most={"arts": 0.4}), pages)
    kept = Counter(item.meta["topic"] for item in result.documents.values())
    assert kept["science"] == 300 and abs(kept["arts"] / kept.total() - 0.4) < 0.01
    assert {item.reason for item in result.drops.values()} == {"downsampled_arts"}
    again = run_step(Downsample(most={"arts": 0.4}), pages[::-1])
    other = run_step(Downsample(most={"arts": 0.4}, seed=1), pages)
    assert set(again.documents) == set(result.documents) != set(other.documents)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepShare(score="q", share=0.0), "share=0.0"),
        (lambda: Downsample(most={}), "most={}"),
        (lambda: Downsample(most={"a": 0.8, "b": 0.7}), "at most 1"),
        (lambda: TokenDistribution(most=-1.0), "above 0"),
    ],
)
def test_settings_out_of_range_are_told_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
