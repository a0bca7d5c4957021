"""Where a run's metrics go: a file of JSON lines, TensorBoard, and the progress bar."""

import jax
from etils import epath

from lmx.core import logging
from lmx.train.config import RunContext


def open_writers(
    workdir: epath.Path, run: RunContext, steps: int, saved_step: int | None
) -> tuple[logging.Writers, logging.ProgressWriter | None]:
    """The metric writers, cut back to the restored step; on all processes but the first they write nothing."""
    if jax.process_index() != 0:
        return logging.Writers(), None
    resume_step = saved_step if saved_step is not None else -1
    progress = logging.ProgressWriter(name=run.name, total=steps, initial=max(resume_step, 0))
    writers: list[logging.MetricWriter] = [logging.JsonLinesWriter(workdir / "metrics.jsonl", resume_step=resume_step)]
    if run.tensorboard:
        writers.append(logging.TensorBoardWriter(workdir / "tensorboard", resume_step=resume_step))
    return logging.Writers(*writers, progress), progress
