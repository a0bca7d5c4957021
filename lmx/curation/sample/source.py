"""The sample crawl as a source of a curation, and the labels and benchmarks that go with it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from lmx.curation.functions.records import Fields
from lmx.curation.pipelines.source import Record, parsed_line
from lmx.curation.sample import crawl, prose


def _block_records(number: int, seed: int) -> Iterator[Record]:
    for line_number, line in enumerate(crawl.lines(number, seed), start=1):
        record = parsed_line(f"sample crawl, block {number}, line {line_number}", line, Fields())
        if record is not None:
            yield record


def _robots_record(line: bytes) -> Record:
    record = parsed_line("sample robots", line, Fields())
    if record is None:
        raise ValueError("the sample's robots.txt files have a blank line")
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCrawl:
    """Pages made up by `sample.crawl`, with every fault that a curation looks for; the same pages in every run.

    Attributes:
      blocks: of 100 pages and 2 broken lines each.
      seed: another one makes other pages.
    """

    blocks: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"SampleCrawl(blocks={self.blocks}) must be at least 1")

    def check(self) -> None:
        """As `Source.check`; there is nothing that could be missing."""

    def read(self, pipeline: Any, label: str) -> Any:
        """As `Source.read`."""
        return (
            pipeline
            | f"{label}/blocks" >> beam.Create(range(self.blocks))
            | f"{label}/spread" >> beam.Reshuffle()
            | f"{label}/pages" >> beam.FlatMap(_block_records, self.seed)
        )

    def truths(self) -> dict[str, crawl.Truth]:
        """URL -> what the page is."""
        return {page.truth.url: page.truth for number in range(self.blocks) for page in crawl.block(number, self.seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRobots:
    """robots.txt files of the sample crawl's sites as they are some months after it.

    Attributes:
      blocks: of the crawl.
    """

    blocks: int = 20

    def check(self) -> None:
        """As `Source.check`."""

    def read(self, pipeline: Any, label: str) -> Any:
        """As `Source.read`."""
        lines = crawl.later_robots(self.blocks)
        return pipeline | f"{label}/files" >> beam.Create(lines) | f"{label}/parse" >> beam.Map(_robots_record)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBenchmarks:
    """Items of invented benchmarks, (benchmark, text).

    Attributes:
      seed: of the crawl.
    """

    seed: int = 0

    def __call__(self) -> list[tuple[str, str]]:
        """The pairs."""
        return crawl.benchmarks(self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityLabels:
    """Texts with the labels "good" and "poor"; none of them is in the crawl.

    Attributes:
      count: texts of each.
      seed: of the texts.
    """

    count: int = 200
    seed: int = 0

    def __call__(self) -> list[tuple[str, str]]:
        """The pairs."""
        good = [
            ("good", "\n".join(prose.article(f"label {self.seed} {i}", prose.TOPICS[i % len(prose.TOPICS)])))
            for i in range(self.count)
        ]
        return good + [("poor", "\n".join(prose.spam(f"label {self.seed} {i}"))) for i in range(self.count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicLabels:
    """Texts with their topics; none of them is in the crawl.

    Attributes:
      count: texts of each topic.
      seed: of the texts.
    """

    count: int = 60
    seed: int = 0

    def __call__(self) -> list[tuple[str, str]]:
        """The pairs."""
        return [
            (topic, "\n".join(prose.article(f"topic label {self.seed} {i}", topic)))
            for topic in prose.TOPICS
            for i in range(self.count)
        ]
