"""Web curation as the papers order it: Llama 3.1's and AFM's steps. Thresholds that a paper leaves open are our choice."""

from collections.abc import Callable, Iterable

from lmx.curation.document import DocumentStep
from lmx.curation.functions import extraction, heuristics, language, pii, robots
from lmx.curation.functions.minhash import MinHash
from lmx.curation.pipelines.classify import Classifier, Quality, Topic
from lmx.curation.pipelines.decontaminate import Decontaminate
from lmx.curation.pipelines.flow import CorpusStep
from lmx.curation.pipelines.keep_one import ExactDedup, UrlDedup
from lmx.curation.pipelines.line_dedup import LineDedup
from lmx.curation.pipelines.near_duplicates import NearDedup
from lmx.curation.pipelines.robots import RobotsRecheck
from lmx.curation.pipelines.select import Downsample
from lmx.curation.pipelines.source import Source
from lmx.curation.pipelines.token_distribution import TokenDistribution

Items = Callable[[], Iterable[tuple[str, str]]]
Steps = tuple[DocumentStep | CorpusStep, ...]


def llama31(
    *,
    quality: Classifier,
    good_label: str,
    topic: Classifier,
    most_of_topic: dict[str, float],
    dirty_words: tuple[str, ...],
    languages: tuple[str, ...] = (),
    line_buckets: int = 1,
    most_divergence: float,
) -> Steps:
    """Llama 3.1's web pipeline (arXiv:2407.21783, 3.1.1): the order of its steps, and the more-than-six rule of line dedup.

    The numbers of MinHash, the dirty words' limit, the divergence and the quality limit are unpublished; these are our choice, the
    n-gram limits Gopher's. Buckets of lines hold 30 million documents each there: give `line_buckets` accordingly.
    """
    return (
        extraction.Extract(),
        UrlDedup(),
        language.Language(keep=languages),
        ExactDedup(within="language"),
        NearDedup(within="language"),
        LineDedup(most=6, buckets=line_buckets),
        heuristics.Heuristics(rules=(*heuristics.gopher(), heuristics.DirtyWords(words=dirty_words))),
        TokenDistribution(most=most_divergence),
        pii.Scrub(most=20),
        Quality(classifier=quality, label=good_label, least=0.5),
        Topic(classifier=topic),
        Downsample(most=most_of_topic),
    )


def afm(
    *,
    quality: Classifier,
    good_label: str,
    benchmarks: Items,
    common_documents: int | None = 1_000,
    later_robots: Source | None = None,
    dirty_words: tuple[str, ...],
    languages: tuple[str, ...] = (),
) -> Steps:
    """AFM's web pipeline (arXiv:2407.21075, 3.1): robots.txt and opt-outs, filters, fuzzy dedup, quality, decontamination.

    AFM's order: page filters, extraction, safety and profanity, global fuzzy dedup, quality, decontamination. Its thresholds are
    unpublished, but for the 4- to 13-grams and the 1,000 of common usage.
    """
    recheck: Steps = () if later_robots is None else (RobotsRecheck(snapshots=later_robots),)
    return (
        robots.Robots(rules=robots.RobotsRules(agents=robots.APPLE)),
        *recheck,
        extraction.Extract(),
        pii.Scrub(most=20),
        heuristics.Heuristics(name="profanity", rules=(heuristics.DirtyWords(words=dirty_words),)),
        UrlDedup(),
        language.Language(keep=languages),
        NearDedup(minhash=MinHash(), within="language"),
        heuristics.Heuristics(rules=heuristics.gopher()),
        Quality(classifier=quality, label=good_label, least=0.5),
        Decontaminate(items=benchmarks, common_documents=common_documents),
    )
