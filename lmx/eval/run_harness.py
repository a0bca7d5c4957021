"""Running tasks of the lm-evaluation-harness: which there are, their scores, and a record of both."""

import difflib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from lmx.core import storage
from lmx.eval.harness import LmxLM

_KEPT = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples", "configs", "config", "date")
_BOOTSTRAPS = 10_000  # resamples behind the standard error of metrics that are no means


def run_tasks(
    lm: LmxLM,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on tasks of the harness, its own or those of a folder of YAML files.

    Args:
      lm: the model.
      tasks: names of tasks, groups or tags, or paths of YAML files.
      include_path: folder with further tasks; None = none.
      limit: documents of each task, or a share of them if below 1; None = all.
      num_fewshot: examples before each question; None = as each task says.
      apply_chat_template: ask in the model's chat format, each example being a turn.

    Returns:
      The harness's results, without the samples.

    Raises:
      ValueError: an unknown task, or a value out of its range.
    """
    if limit is not None and (limit <= 0 or (limit >= 1 and limit != int(limit))):
        raise ValueError(f"--limit {limit:g} must be a whole number of documents, or a share of them between 0 and 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"--num-fewshot {num_fewshot} must be at least 0")
    manager = _manager(tasks, include_path)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        limit=limit if limit is None or limit < 1 else int(limit),
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=apply_chat_template,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=_BOOTSTRAPS,
    )
    return {name: results[name] for name in _KEPT if name in results}


def table(results: dict[str, Any]) -> str:
    """The scores as a table for people."""
    parts = [make_table(results)] + ([make_table(results, "groups")] if results.get("groups") else [])
    return "\n".join(part.strip() for part in parts)


def write_results(path: Path, results: dict[str, Any], versions: dict[str, str]) -> None:
    """Writes results with the versions of what made them, as JSON; a NaN becomes null."""
    record = {**results, "lmx_versions": {**versions, "lm-eval": importlib.metadata.version("lm_eval")}}
    plain = json.loads(json.dumps(record, default=handle_non_serializable), parse_constant=lambda name: None)
    storage.write_json(path, plain)


def _manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """The tasks that can be run. Those of the folder alone if it has all that is asked for: the harness's own are 13,000 files."""
    if not tasks:
        raise ValueError("no task is named; use --tasks NAME[,NAME...]")
    if include_path is not None:
        if not include_path.is_dir():
            raise ValueError(f"--include-path {include_path} is not a folder")
        local = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(local.all_subtasks):
            return local
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if task not in manager.task_index and not Path(task).is_file():
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists those that lm-eval brings along"
            raise ValueError(f"there is no task {task!r}{hint}")
    return manager
