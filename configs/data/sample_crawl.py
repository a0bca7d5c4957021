"""The sample crawl, curated: every step of `lmx.curation` on 2,000 made-up pages whose faults are known.

lmx curate configs/data/sample_crawl.py
"""

from configs.data import curation
from lmx.curation.config import Curation, FieldIs, LongerThan, OutputSet
from lmx.curation.functions import robots
from lmx.curation.pipelines.classify import Classifier
from lmx.curation.pipelines.decontaminate import Decontaminate
from lmx.curation.pipelines.robots import RobotsRecheck
from lmx.curation.sample import words
from lmx.curation.sample.source import QualityLabels, SampleBenchmarks, SampleCrawl, SampleRobots, TopicLabels


def get_config(blocks: int = 20, seed: int = 0) -> Curation:
    """Llama 3.1's steps, between AFM's look at robots.txt and its decontamination."""
    return Curation(
        name="sample_crawl",
        source=SampleCrawl(blocks=blocks, seed=seed),
        steps=(
            robots.Robots(),
            RobotsRecheck(snapshots=SampleRobots(blocks=blocks)),
            *curation.llama31(
                quality=Classifier(labels=QualityLabels()),
                good_label="good",
                topic=Classifier(labels=TopicLabels()),
                most_of_topic={"entertainment": 0.3},
                dirty_words=tuple(words.DIRTY.split()),
                languages=("en",),
                most_divergence=2.5,  # articles have 0.2 to 1.4 nats, invented words more than 3
            ),
            # 1,000 documents are common usage in AFM; here the planted phrases come to about two in each block.
            Decontaminate(items=SampleBenchmarks(seed=seed), common_documents=max(blocks, 2)),
        ),
        outputs=(
            OutputSet(name="documents"),
            OutputSet(name="long", accepts=LongerThan(words=1_000), shards=1),
            OutputSet(name="science", accepts=FieldIs(field="topic", values=("science",)), shards=1),
        ),
    )
