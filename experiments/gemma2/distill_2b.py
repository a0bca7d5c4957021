"""Gemma 2 2B, 2T tokens of the 27B's distribution, over your own shards of text.  Status: not yet run.

The report's layout: 512 TPUv5e, 512 data shards.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/gemma2/distill_2b.py --workdir gs://bucket/gemma2_distill_2b
"""

from configs.models import gemma2 as models
from configs.recipes import gemma2
from configs.recipes.gemma2 import Size
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    teacher = Size(model=models.gemma2_27b(), tokens=13e12, rows=1_024, peak=1.5e-4)
    student = Size(model=models.gemma2_2b(), tokens=2e12, rows=512, peak=5e-4)
    recipe = gemma2.pretraining(gemma2.paper(teacher, {"student": student}))
    return recipe.experiment("gemma2 2B", mesh=MeshConfig(fsdp=512))
