"""AFM's server recipe on a stand-in for its model, whose size is not published, over your own shards of text.  Status: not yet run.

Text: a folder a domain, see `shards` in configs/data/domains.py.

lmx run experiments/afm/pretrain_server_proxy.py --workdir gs://bucket/afm_pretrain_server_proxy
"""

from configs.models import afm as models
from configs.recipes import afm
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig


def get_config() -> Experiment:
    """The pipeline."""
    scale = afm.paper(models.afm_server_proxy(), vocab_size=100_352)
    return afm.pretraining(scale).experiment("afm server proxy", mesh=MeshConfig(fsdp=-1))
