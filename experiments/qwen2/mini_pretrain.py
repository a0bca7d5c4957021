"""Qwen 2's pre-training on a CPU: the same recipe with rows and RoPE bases scaled, and an MoE upcycled.

Hardware: a CPU, 2 cores.  Status: not yet run to the end at this size.

lmx run experiments/qwen2/mini_pretrain.py --workdir W/qwen2
"""

from configs.recipes import qwen2
from configs.recipes.parts import mini_report
from lmx.pipeline.experiment import Experiment


def get_config() -> Experiment:
    """The pipeline."""
    scale = qwen2.mini()
    recipe = qwen2.pretraining(scale)
    report = mini_report(
        recipe,
        scale.setting,
        models=("main", "long", "experts"),
        length=scale.first_length,
        lengths=(scale.first_length, scale.model.max_length),
        command="lmx run experiments/qwen2/mini_pretrain.py --workdir WORKDIR",
        title="Qwen 2's pre-training, mini",
    )
    return recipe.experiment("qwen2 mini", more=report)
