"""Annealing as a probe of data: a half-trained 8B, led to rate 0 over 40B tokens, 30% of them a candidate.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/llama31/data_probe_8b.py --workdir gs://bucket/llama31_data_probe_8b
"""

from configs.models import llama3
from configs.recipes import llama31
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    recipe = llama31.data_probe(llama31.paper(llama3.llama31_8b(), peak=3e-4), candidates=("maths", "licensed"))
    return recipe.experiment("llama31 data probe", mesh=MeshConfig(fsdp=-1))
