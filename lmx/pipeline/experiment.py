"""Experiments: named stages with a seed, loaded from a file, varied by seeds and by the file's own sweep."""

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from lmx.core import overrides
from lmx.pipeline.stage import Stage
from lmx.sharding.mesh import MeshConfig

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole pipeline.

    Attributes:
      seed: seed from which every stage derives its own.
      stages: stages by name; the name is the stage's folder in the workdir. Order doesn't matter, the inputs decide.
      mesh: shape of the device mesh; part of no fingerprint, so a run may go on with another one.
      name: title for reports.
      figures: stage -> what -> where that comes from: "report", "choice: why" ..., for `lmx show`; part of no fingerprint.
    """

    seed: int
    stages: Mapping[str, Stage]
    mesh: MeshConfig = MeshConfig()
    name: str = ""
    figures: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("an experiment needs at least one stage")
        for name, stage in self.stages.items():
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"stage name {name!r} must start with a letter and hold only letters, digits, '_' and '-': it names a folder"
                )
            if not dataclasses.is_dataclass(stage) or not hasattr(stage, "produces") or not hasattr(stage, "run"):
                raise ValueError(
                    f"stages.{name} must be a stage (a frozen dataclass with `produces` and `run`), found {type(stage).__name__}"
                )
        if unknown := sorted(set(self.figures).difference(self.stages)):
            raise ValueError(f"figures tells of {', '.join(unknown)}, but the stages are {', '.join(self.stages)}")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One experiment of a set; `suffix` is its folder below the workdir, "" for a lone one."""

    suffix: str
    experiment: Experiment


def load_module(file: Path) -> ModuleType:
    """Imports an experiment file, with the nearest folder above it that has a pyproject.toml on `sys.path`.

    The module is named by its path from that folder (`experiments.quickstart`), so functions defined in it have the same
    qualified name, and so the same fingerprint, from wherever the file is launched.
    """
    file = Path(file).resolve()
    if not file.is_file():
        raise ValueError(f"no experiment file at {file}")
    if file.suffix != ".py":
        raise ValueError(f"{file} is not a Python file; an experiment is a .py file that defines get_config()")
    root = next((folder for folder in file.parents if (folder / "pyproject.toml").is_file()), file.parent)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(file.relative_to(root).with_suffix("").parts)
    known = sys.modules.get(name)
    if known is not None and not hasattr(known, "get_config") and Path(getattr(known, "__file__", None) or "").resolve() != file:
        raise ValueError(f"{file} would be imported as {name!r}, which is another module's name; rename the file")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"Python can't import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_experiment(file: Path, assignments: Iterable[tuple[str, str]] = ()) -> Experiment:
    """The experiment that `get_config()` of a file returns, with overrides applied.

    Args:
      file: experiment file.
      assignments: (path, text) pairs for `overrides.override_all`.

    Raises:
      ValueError: when there is no such file or function, it returns something else, or an override doesn't fit.
    """
    module = load_module(file)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{file} defines no get_config(); an experiment file has `def get_config() -> Experiment`")
    return _overridden(module.get_config(), assignments, f"get_config() of {file}")


def load_variants(
    file: Path, assignments: Sequence[tuple[str, str]] = (), *, seeds: Sequence[int] = (), sweep: bool = False
) -> list[Variant]:
    """The experiments of a file: one, or one a member of its `sweep()`, each once a seed.

    Args:
      file: experiment file.
      assignments: overrides, applied to every variant.
      seeds: seeds that replace the experiment's own; suffix `seedN`.
      sweep: use the file's `sweep()`, a generator of (suffix, Experiment).
    """
    variants = _sweep(file, assignments) if sweep else [Variant("", load_experiment(file, assignments))]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {','.join(map(str, seeds))} name a seed twice")
    if not seeds:
        return variants
    return [
        Variant(f"{variant.suffix}/seed{seed}".lstrip("/"), dataclasses.replace(variant.experiment, seed=seed))
        for variant in variants
        for seed in seeds
    ]


def _sweep(file: Path, assignments: Sequence[tuple[str, str]]) -> list[Variant]:
    module = load_module(file)
    if not callable(getattr(module, "sweep", None)):
        raise ValueError(f"{file} defines no sweep(); a sweep is a generator of (suffix, Experiment)")
    variants: list[Variant] = []
    for suffix, config in module.sweep():
        if not _NAME.fullmatch(str(suffix)):
            raise ValueError(
                f"sweep() of {file} yields the suffix {suffix!r}; it names a folder: letters, digits, '_' and '-' only"
            )
        if any(suffix == variant.suffix for variant in variants):
            raise ValueError(f"sweep() of {file} yields the suffix {suffix!r} twice")
        variants.append(Variant(suffix, _overridden(config, assignments, f"sweep() of {file}")))
    if not variants:
        raise ValueError(f"sweep() of {file} yields nothing")
    return variants


def _overridden(config: object, assignments: Iterable[tuple[str, str]], origin: str) -> Experiment:
    if not isinstance(config, Experiment):
        raise ValueError(f"{origin} gives a {type(config).__name__}, expected an lmx.pipeline.experiment.Experiment")
    return overrides.override_all(config, assignments)
