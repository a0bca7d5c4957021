"""Gemma 2's pre-training on a CPU: the same recipe, a teacher and two students, windows and RoPE base scaled.

Hardware: a CPU, 2 cores (time on an idle machine not measured).  Bits per held-out byte: 2.109 the teacher, 2.370 the larger
student and 3.000 the smaller, which has 74 steps (bytes of order-2 Markov 2.860, `xz -9e` 2.367).

lmx run experiments/gemma2/mini_pretrain.py --workdir W/gemma2
"""

from configs.recipes import gemma2
from configs.recipes.parts import mini_report
from lmx.pipeline.experiment import Experiment


def get_config() -> Experiment:
    """The pipeline."""
    scale = gemma2.mini()
    recipe = gemma2.pretraining(scale)
    report = mini_report(
        recipe,
        scale.setting,
        models=("teacher", *scale.students),
        length=scale.length,
        lengths=(scale.length,),
        command="lmx run experiments/gemma2/mini_pretrain.py --workdir WORKDIR",
        title="Gemma 2's pre-training, mini",
    )
    return recipe.experiment("gemma2 mini", more=report)
