"""AFM's on-device pre-training on a CPU: the same recipe with rows, RoPE bases and muP's base width scaled.

Hardware: a CPU, 2 cores, 14 min beside another full load.  Bits per held-out byte: 2.495 the parent, 2.512 cut, 3.432 after the
core stage (its loss is 0.9 of the teacher's top-1, which costs likelihood), 2.567 continued on labels, 2.571 lengthened.

lmx run experiments/afm/mini_pretrain.py --workdir W/afm
"""

from configs.recipes import afm
from configs.recipes.parts import mini_report
from lmx.pipeline.experiment import Experiment


def get_config() -> Experiment:
    """The pipeline."""
    scale = afm.mini()
    recipe = afm.pretraining(scale)
    report = mini_report(
        recipe,
        scale.setting,
        models=("parent", "pruned", "core", "continued", "lengthened"),
        length=scale.lengths[0],
        lengths=scale.lengths,
        command="lmx run experiments/afm/mini_pretrain.py --workdir WORKDIR",
        title="AFM's pre-training, mini",
    )
    return recipe.experiment("afm mini", more=report)
