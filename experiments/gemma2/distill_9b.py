"""Gemma 2 9B, 8T tokens of the 27B's distribution, over your own shards of text.  Status: not yet run.

The report's layout: 4,096 TPUv4, 1,024 data shards and 4 model shards.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/gemma2/distill_9b.py --workdir gs://bucket/gemma2_distill_9b
"""

from configs.models import gemma2 as models
from configs.recipes import gemma2
from configs.recipes.gemma2 import Size
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    teacher = Size(model=models.gemma2_27b(), tokens=13e12, rows=1_024, peak=1.5e-4)
    student = Size(model=models.gemma2_9b(), tokens=8e12, rows=1_024, peak=3e-4)
    recipe = gemma2.pretraining(gemma2.paper(teacher, {"student": student}))
    return recipe.experiment("gemma2 9B", mesh=MeshConfig(fsdp=1_024, tensor=4))
