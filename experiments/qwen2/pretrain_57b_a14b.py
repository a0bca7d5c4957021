"""Qwen2-57B-A14B: the 7B, upcycled, and 4.5T tokens more, over your own shards of text.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/qwen2/pretrain_57b_a14b.py --workdir gs://bucket/qwen2_pretrain_57b_a14b
"""

from configs.models import qwen2 as models
from configs.recipes import qwen2
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    scale = qwen2.paper(models.qwen2_7b(), peak=3e-4, moe=models.qwen2_57b_a14b())
    return qwen2.pretraining(scale).experiment("qwen2 57B-A14B", mesh=MeshConfig(fsdp=-1))
