"""Gemma 2 27B, 13T tokens from labels, over your own shards of text.  Status: not yet run.

The report's layout: 6,144 TPUv5p, 768 data shards and 8 model shards.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/gemma2/pretrain_27b.py --workdir gs://bucket/gemma2_pretrain_27b
"""

from configs.models import gemma2 as models
from configs.recipes import gemma2
from configs.recipes.gemma2 import Size
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    scale = gemma2.paper(Size(model=models.gemma2_27b(), tokens=13e12, rows=768, peak=1.5e-4))
    return gemma2.pretraining(scale).experiment("gemma2 27B", mesh=MeshConfig(fsdp=768, tensor=8))
