"""Llama 3.1 70B, pre-training as the report has it, over your own shards of text.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/llama31/pretrain_70b.py --workdir gs://bucket/llama31_pretrain_70b
"""

from configs.models import llama3
from configs.recipes import llama31
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    recipe = llama31.pretraining(llama31.paper(llama3.llama31_70b(), peak=1.5e-4))
    return recipe.experiment("llama31 70B", mesh=MeshConfig(fsdp=-1))
