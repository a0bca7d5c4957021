"""A GGUF model opened for conversion."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from lmx.convert.gguf.config import read_config
from lmx.convert.gguf.families import ROPE_DIVISORS, TABLES
from lmx.convert.gguf.header import StoredTensor
from lmx.convert.gguf.numbers import PLAIN, describe, read_rows
from lmx.convert.gguf.split import Model, read_model
from lmx.convert.reading import OffsetReader
from lmx.convert.rules import Rule, expand
from lmx.convert.source import ConversionError, TensorInfo
from lmx.model.config import DecoderConfig
from lmx.tokenizer import gguf as gguf_tokenizer
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

_MAX_DIVISORS = 1 << 16  # longest rope_freqs.weight that is read while opening
_NARROW = {GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
_NO_VOCABULARY = ("no_vocab", "none")


class GgufSource:
    """An opened GGUF model; see `lmx.convert.source.Source`.

    llama.cpp keeps vectors in float32 whatever the model was in. Where the matrices are all bfloat16 (or float16) and every vector
    holds what that dtype can, the vectors are announced in it, so that the model becomes what it was; `read` gives float32.
    """

    kind = "gguf"
    origin: Path | None = None

    def __init__(self, path: Path, model: Model) -> None:
        """Reads the config from checked headers, and no tensor but the frequency divisors of Llama 3.1."""
        self.path = path
        self._model = model
        self._files: dict[Path, OffsetReader] = {}
        try:
            for part in model.paths:
                self._files[part] = OffsetReader(part)
            self.tensors: Mapping[str, TensorInfo] = {name: describe(tensor) for name, tensor in model.tensors.items()}
            self.ignored: Mapping[str, str] = {}
            shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
            self.family: str | None
            self.family, self.config = read_config(model.metadata, shapes, self._divisors(), path)
            self.rules: tuple[Rule, ...] = expand(self.config, TABLES[self.family], f"GGUF {self.family}")
            self.tensors = self._announced()
        except BaseException:
            self.close()
            raise
        self.notes: tuple[str, ...] = tuple(_notes(model, self.config, self.family))

    def _divisors(self) -> np.ndarray | None:
        """Llama 3.1's frequency divisors; the config holds what they say, so no rule uses the tensor."""
        tensor = self._model.tensors.get(ROPE_DIVISORS)
        if tensor is None or self._model.metadata.get("general.architecture") != "llama":
            return None
        if len(tensor.shape) != 1 or tensor.shape[0] > _MAX_DIVISORS:
            raise ConversionError(
                f"{tensor.path}: {ROPE_DIVISORS} has the shape {tensor.shape}, which is no list of frequency divisors"
            )
        self.ignored = {ROPE_DIVISORS: "its scaling of the rotary frequencies is in the config"}
        return self.read(ROPE_DIVISORS)

    def _announced(self) -> Mapping[str, TensorInfo]:
        """The tensors, vectors in the dtype of the matrices where that loses nothing."""
        stored = {rule.name: self._model.tensors[rule.name] for rule in self.rules if rule.name in self._model.tensors}
        kinds = {tensor.type for tensor in stored.values() if len(tensor.shape) > 1}
        dtype = PLAIN[kinds.pop()] if len(kinds) == 1 and kinds <= _NARROW else None
        vectors = [rule for rule in self.rules if rule.name in stored and len(stored[rule.name].shape) == 1]
        if dtype is None or any(stored[rule.name].shape != rule.foreign_shape() for rule in vectors):
            return self.tensors
        for rule in vectors:
            values = rule.to_lmx(self.read(rule.name)).astype(np.float32)
            if not np.array_equal(values, values.astype(dtype).astype(np.float32)):
                return self.tensors
        narrowed = {rule.name: dataclasses.replace(self.tensors[rule.name], dtype=dtype.name) for rule in vectors}
        return {**self.tensors, **narrowed}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop (leading axis) of a tensor, quantised types as float32.

        Raises:
          ConversionError: the file was cut short since it was opened.
        """
        tensor: StoredTensor = self._model.tensors[name]
        return read_rows(self._files[tensor.path], tensor, start, tensor.shape[0] if stop is None else stop)

    def tokenizer(self) -> tuple[Tokenizer, Chat | None] | None:
        """The tokenizer and chat template in the metadata, None when there are none.

        Raises:
          ValueError: they are damaged, or of a kind that lmx does not know.
        """
        if self._model.metadata.get("tokenizer.ggml.model", "none") in _NO_VOCABULARY:
            return None
        try:
            return gguf_tokenizer.from_metadata(self._model.metadata)
        except ConversionError:
            raise
        except ValueError as error:
            raise ConversionError(f"{self.path}: the tokenizer cannot be read: {error}") from error

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def open_source(path: Path) -> GgufSource:
    """Opens a GGUF file, or all files of a model that is split into several.

    Raises:
      FileNotFoundError: there is no such file.
      ConversionError: it is damaged, or not a model that lmx has.
    """
    return GgufSource(path, read_model(path))


def _notes(model: Model, config: DecoderConfig, family: str) -> list[str]:
    notes = []
    if family == "gemma2":
        scale = config.layer_pattern[0].attention.scale or 1.0
        notes.append(
            f"GGUF does not hold Gemma 2's query scale; as in llama.cpp, {config.num_layers} layers make it {scale**-2:.0f} ** -0.5"
        )
    if len(model.paths) > 1:
        notes.append(f"read from {len(model.paths)} files")
    return notes
