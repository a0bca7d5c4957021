"""Llama 3.1's pre-training on a CPU: the same recipe with rows, marks and RoPE base scaled.

Hardware: a CPU, 2 cores; 6 to 7 min of CPU time (on an idle machine not measured).  Bits per held-out byte: 2.129 after the ramp,
2.136 lengthened, 2.110 annealed.  The gates of 184, 256, 360 and 512 open; those of 728 and 1,024 stay shut to the end of their
steps, with 65% and 78% of the needles found, and the run says so and goes on.

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
