"""Llama 3.1's pre-training on a CPU: the same recipe with rows, marks and RoPE base scaled.

Hardware: a CPU, 2 cores.  Status: not yet run to the end at this size.

lmx run experiments/llama31/mini_pretrain.py --workdir W/llama31
"""

from configs.recipes import llama31
from configs.recipes.parts import mini_report
from lmx.pipeline.experiment import Experiment


def get_config() -> Experiment:
    """The pipeline."""
    scale = llama31.mini()
    recipe = llama31.pretraining(scale)
    report = mini_report(
        recipe,
        scale.setting,
        models=("main", "lengthened", "annealed"),
        length=scale.length,
        lengths=(scale.length, scale.lengths[-1]),
        command="lmx run experiments/llama31/mini_pretrain.py --workdir WORKDIR",
        title="Llama 3.1's pre-training, mini",
    )
    return recipe.experiment("llama31 mini", more=report)
