"""Curves for the report, from the metrics that a stage logged."""

from collections.abc import Mapping

from etils import epath

from lmx.core import storage

Curve = list[tuple[float, float]]  # (step, value) in order of step
Curves = Mapping[str, Mapping[str, Curve]]  # stage -> name of the line -> its points


def read_curves(path: epath.PathLike, names: Mapping[str, str]) -> dict[str, Curve]:
    """Reads chosen metrics from a `metrics.jsonl`.

    Args:
      path: file of one JSON object a line, each with "step".
      names: metric -> name of its line in the chart, e.g. {"train/loss": "training", "eval/loss": "held-out"}.

    Returns:
      Name of the line -> points, for the metrics that occur; values that are not numbers (a diverged loss) are left out.
    """
    records = storage.read_json_lines(path)
    curves: dict[str, Curve] = {}
    for metric, name in names.items():
        points = [
            (float(record["step"]), float(record[metric])) for record in records if isinstance(record.get(metric), int | float)
        ]
        if points:
            curves[name] = points
    return curves


def last_step(path: epath.PathLike) -> int | None:
    """The last step in a `metrics.jsonl`, None where there is none."""
    records = storage.read_json_lines(path)
    return int(records[-1]["step"]) if records else None
