"""Qwen2-1.5B, 7T tokens, over your own shards of text.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/qwen2/pretrain_1_5b.py --workdir gs://bucket/qwen2_pretrain_1_5b
"""

from configs.models import qwen2 as models
from configs.recipes import qwen2
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    recipe = qwen2.pretraining(qwen2.paper(models.qwen2_1_5b(), peak=6e-4, tokens=7e12))
    return recipe.experiment("qwen2 1.5B", mesh=MeshConfig(fsdp=-1))
