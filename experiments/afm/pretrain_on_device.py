"""AFM on-device: a 6.4B parent, learned masks, the core distilled, continued, lengthened; your own text.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/afm/pretrain_on_device.py --workdir gs://bucket/afm_pretrain_on_device
"""

from configs.models import afm as models
from configs.recipes import afm
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    scale = afm.paper(models.afm_on_device(), vocab_size=49_152, parent=models.afm_parent())
    return afm.pretraining(scale).experiment("afm on-device", mesh=MeshConfig(fsdp=-1))
