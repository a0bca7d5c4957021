"""An lmx artifact as a source and as a target of conversion."""

import dataclasses
import datetime
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmx.checkpoint.streaming import ParameterReader, ParameterWriter
from lmx.convert.blocks import blocks
from lmx.convert.hf.tokenizer_files import keep_files
from lmx.convert.rules import IDENTITY, Place, Rule, parameter_shapes
from lmx.convert.source import FLOATS, ConversionError, ModelDescription, TensorInfo
from lmx.core import serialize, storage
from lmx.model.activation import ACTIVATIONS
from lmx.model.config import DecoderConfig
from lmx.pipeline import artifact
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

FOREIGN = "foreign"
"""Folder of an artifact with files of the checkpoint that it came from, which no part of lmx reads but a conversion back."""
_SLACK_BYTES = 64 << 20  # for everything but the parameters
_EXPERTS = "/experts/"


class ArtifactSource:
    """A finished model artifact; see `lmx.convert.source.Source`."""

    kind = "lmx"
    family: str | None = None

    def __init__(self, path: Path) -> None:
        """Reads what describes it.

        Raises:
          ValueError: it is not a finished artifact, or holds no model.
          DamagedError: its parameters cannot be read.
        """
        self.path = path
        self._artifact = artifact.open_finished(path)
        self.config: DecoderConfig = self._artifact.model_config()
        self._reader = ParameterReader(self._artifact.path / artifact.PARAMS)
        shapes = parameter_shapes(self.config)
        saved = {leaf: form.shape for leaf, form in self._reader.shapes.items()}
        if saved != shapes:
            leaf = min(leaf for leaf in saved | shapes if saved.get(leaf) != shapes.get(leaf))
            raise ConversionError(
                f"{path}: {artifact.MODEL} describes {leaf} with the shape {shapes.get(leaf)}, but {artifact.PARAMS}/ has it with "
                f"{saved.get(leaf)}"
            )
        self.rules: tuple[Rule, ...] = own_rules(self.config)
        self.tensors: Mapping[str, TensorInfo] = {rule.name: self._info(rule) for rule in self.rules}
        self._rules = {rule.name: rule for rule in self.rules}
        self.ignored: Mapping[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.origin: Path | None = path / FOREIGN if (path / FOREIGN).is_dir() else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop of the part of a parameter."""
        rule = self._rules[name]
        return self._reader.read(rule.place.leaf, rule.place.indices, start, rule.shape[0] if stop is None else stop)

    def tokenizer(self) -> tuple[Tokenizer, Chat | None] | None:
        """Its tokenizer and chat format; None when it has none."""
        if not self._artifact.has_tokenizer():
            return None
        return self._artifact.tokenizer(), self._artifact.chat()

    def close(self) -> None:
        """Nothing is held open between reads."""

    def _info(self, rule: Rule) -> TensorInfo:
        dtype = self._reader.shapes[rule.place.leaf].dtype
        return TensorInfo(rule.shape, dtype.name, math.prod(rule.shape) * dtype.itemsize)


class ArtifactTarget:
    """A model artifact being written; see `lmx.convert.source.Target`."""

    kind = "lmx"

    def __init__(self, path: Path, model: ModelDescription) -> None:
        """Decides the dtype, one for all parameters: what was asked for, or the narrowest that holds every number of the source.

        Raises:
          ConversionError: the dtype is none that lmx keeps parameters in.
        """
        if model.dtype is not None and model.dtype not in FLOATS:
            raise ConversionError(f"--dtype {model.dtype} is none of those that lmx keeps parameters in: {', '.join(FLOATS)}")
        self._path, self._model = path, model
        found = set(model.dtypes.values())
        self.dtype = model.dtype or (found.pop() if len(found) == 1 else "float32")
        mixed = model.dtype is None and len(set(model.dtypes.values())) > 1
        self.notes: tuple[str, ...] = ()
        if mixed:
            self.notes += (
                f"the source mixes {', '.join(sorted(set(model.dtypes.values())))}; all are written as float32, exactly",
            )
        if model.tokenizer is None:
            self.notes += ("the source has no tokenizer, and so the artifact has none: `lmx.load` opens it, for token ids only",)
        self.rules: tuple[Rule, ...] = own_rules(model.config)
        self._rules = {rule.name: rule for rule in self.rules}
        self._shapes = parameter_shapes(model.config)
        elements = sum(math.prod(shape) for shape in self._shapes.values())
        self.size_bytes = elements * np.dtype(self.dtype).itemsize + _SLACK_BYTES
        self._writer: ParameterWriter | None = None

    def begin(self) -> None:
        """Creates the folder with all but the parameters; the manifest comes last."""
        self._path.mkdir()
        if self._model.tokenizer is not None:
            artifact.write_tokenizer(storage.as_path(self._path), self._model.tokenizer, self._model.chat)
        if self._model.origin is not None:
            keep_files(self._model.origin, self._path / FOREIGN)
        shapes = {leaf: (shape, self.dtype, _leading(leaf)) for leaf, shape in self._shapes.items()}
        self._writer = ParameterWriter(self._path / artifact.PARAMS, shapes)

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Writes rows of the part of a parameter, cast to the artifact's dtype."""
        assert self._writer is not None, "begin() comes first"
        rule = self._rules[name]
        for at, block in blocks(rows, self.dtype, rule.shape):
            self._writer.write(rule.place.leaf, rule.place.indices, start + at, block)

    def finish(self) -> None:
        """Completes the parameters, then `model.json`, then the manifest."""
        assert self._writer is not None, "begin() comes first"
        self._writer.finish()
        folder = storage.as_path(self._path)
        storage.write_json(folder / artifact.MODEL, serialize.to_json(self._model.config, ACTIVATIONS))
        if self._model.manifest is not None:
            now = datetime.datetime.now(datetime.UTC).isoformat()
            artifact.write_manifest(folder, dataclasses.replace(self._model.manifest, status="finished", finished=now))

    def abort(self) -> None:
        """Waits for the writes that are under way."""
        if self._writer is not None:
            self._writer.abort()


def own_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """A model's places under lmx's own names: each layer of a stacked parameter apart, and each expert."""
    rules = []
    for leaf, shape in parameter_shapes(config).items():
        leading = _leading(leaf)
        for index in np.ndindex(*shape[:leading]):
            place = Place(leaf, *index)
            rules.append(Rule(name=str(place), place=place, shape=shape[leading:], layout=IDENTITY))
    return tuple(rules)


def _leading(leaf: str) -> int:
    """How many leading axes of a parameter count layers and experts."""
    return 0 if not leaf.startswith("blocks/") else 2 if _EXPERTS in leaf else 1


def open_source(path: Path) -> ArtifactSource:
    """Opens what lies at `path`; see `ArtifactSource`."""
    return ArtifactSource(path)


def open_target(path: Path, model: ModelDescription) -> ArtifactTarget:
    """Prepares what will lie at `path`; see `ArtifactTarget`."""
    return ArtifactTarget(path, model)
