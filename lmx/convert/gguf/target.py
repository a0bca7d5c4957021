"""A model being written as a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType

from lmx.convert.gguf.config import describe_config
from lmx.convert.gguf.families import ROPE_DIVISORS, TABLES
from lmx.convert.gguf.writer import GgufWriter, PlannedTensor
from lmx.convert.rules import Rule, expand
from lmx.convert.source import ConversionError, ModelDescription
from lmx.tokenizer import gguf as gguf_tokenizer

TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
"""What can be asked for."""
_FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK = 32  # numbers of a Q8_0 block
_UNUSED = 5  # llama.cpp's type of tokens that no text becomes


class GgufTarget:
    """A GGUF file being written; see `lmx.convert.source.Target`. `family` is the architecture that it says."""

    kind = "gguf"

    def __init__(self, path: Path, model: ModelDescription) -> None:
        """Chooses the architecture and the tensors' types, and lays the file out.

        Raises:
          ConversionError: no architecture can express the model, or the dtype is none that lmx writes.
        """
        family, metadata, divisors = _choose(model)
        self.family = family
        self.rules: tuple[Rule, ...] = expand(model.config, TABLES[family], f"GGUF {family}")
        self._divisors = divisors
        notes: list[str] = []
        planned = [_planned(rule, model, notes) for rule in self.rules]
        kinds = [tensor.type for tensor in planned if len(tensor.shape) > 1]
        main = max(kinds, key=kinds.count)
        self.dtype = next(name for name, kind in TYPES.items() if kind == main)
        if divisors is not None:
            planned.append(PlannedTensor(ROPE_DIVISORS, divisors.shape, GGMLQuantizationType.F32))
        metadata["general.file_type"] = int(_FILE_TYPES[main])
        if main == GGMLQuantizationType.Q8_0:
            metadata["general.quantization_version"] = GGML_QUANT_VERSION
        metadata |= _tokenizer_metadata(model, notes)
        self._writer = GgufWriter(path, metadata, planned)
        self.size_bytes = self._writer.size
        self.notes: tuple[str, ...] = tuple(notes)

    def begin(self) -> None:
        """Creates the file, and writes what depends on no parameter."""
        self._writer.begin()
        if self._divisors is not None:
            self._writer.write(ROPE_DIVISORS, self._divisors)

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Writes rows (leading axis) of a tensor from row `start` on, cast or quantised.

        Raises:
          ConversionError: a number is too large for the tensor's type.
        """
        self._writer.write(name, rows, start)

    def finish(self) -> None:
        """Completes the file and closes it."""
        self._writer.finish()

    def abort(self) -> None:
        """Closes the file."""
        self._writer.abort()


def open_target(path: Path, model: ModelDescription) -> GgufTarget:
    """Prepares a GGUF file; nothing is written before `begin`.

    Args:
      path: of the file, a temporary name.
      model: all but its tensors. Its dtype is one of `TYPES`; None keeps each tensor's.

    Raises:
      ConversionError: no architecture can express the model, or the dtype is none that lmx writes.
    """
    return GgufTarget(path, model)


def _choose(model: ModelDescription) -> tuple[str, dict[str, Any], np.ndarray | None]:
    """The first architecture that the model fits, its metadata, and the frequency divisors of Llama 3.1."""
    biases = model.config.layer_pattern[0].attention.qkv_bias
    likely = ("qwen2", "llama", "gemma2") if biases else ("llama", "qwen2", "gemma2")
    candidates = (model.family,) if model.family in TABLES else likely
    reasons = []
    for family in candidates:
        try:
            return family, *describe_config(model.config, family)
        except ConversionError as error:
            reasons.append(str(error))
    raise ConversionError(f"the model cannot be written as GGUF: {'; '.join(reasons)}")


def _planned(rule: Rule, model: ModelDescription, notes: list[str]) -> PlannedTensor:
    """Vectors stay float32, as in llama.cpp; tables and kernels are written as asked for, else as they are in the source."""
    shape = rule.foreign_shape()
    if len(shape) == 1:
        return PlannedTensor(rule.name, shape, GGMLQuantizationType.F32)
    dtype = model.dtype or model.dtypes[rule.place.leaf]
    if dtype not in TYPES:
        raise ConversionError(f"the dtype {dtype!r} is none that lmx writes to GGUF; it writes {', '.join(TYPES)}")
    kind = TYPES[dtype]
    if kind == GGMLQuantizationType.Q8_0 and shape[-1] % _BLOCK:
        kind = GGMLQuantizationType.F16
        notes.append(f"{rule.name} is written as F16: its rows of {shape[-1]} numbers are no whole Q8_0 blocks of {_BLOCK}")
    return PlannedTensor(rule.name, shape, kind)


def _tokenizer_metadata(model: ModelDescription, notes: list[str]) -> dict[str, Any]:
    """The tokenizer's keys, its vocabulary filled up to the table's rows as llama.cpp demands."""
    if model.tokenizer is None:
        notes.append("the model has no tokenizer, and so the file has none: llama.cpp can run it on token ids only")
        return {"tokenizer.ggml.model": "no_vocab"}
    try:
        metadata = dict(gguf_tokenizer.to_metadata(model.tokenizer, model.chat))
    except ValueError as error:
        notes.append(f"the tokenizer is not written, and llama.cpp can run the file on token ids only: {error}")
        return {"tokenizer.ggml.model": "no_vocab"}
    if isinstance(charsmap := metadata.get("tokenizer.ggml.precompiled_charsmap"), list):
        metadata["tokenizer.ggml.precompiled_charsmap"] = bytes(value % 256 for value in charsmap)
    tokens, rows = list(metadata["tokenizer.ggml.tokens"]), model.config.vocab_size
    if len(tokens) > rows:
        raise ConversionError(f"the tokenizer has {len(tokens):,} tokens, but the embedding has only {rows:,} rows")
    padding = range(len(tokens), rows)
    fill: Mapping[str, list[Any]] = {
        "tokenizer.ggml.tokens": [f"[PAD{index}]" for index in padding],
        "tokenizer.ggml.token_type": [_UNUSED] * len(padding),
        "tokenizer.ggml.scores": [-1000.0] * len(padding),
    }
    for key, values in fill.items():
        if key in metadata:
            metadata[key] = [*metadata[key], *values]
    return metadata
