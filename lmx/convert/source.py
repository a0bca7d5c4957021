"""What conversion needs of an opened checkpoint: `Source` to read one, `Target` to write one.

A kind of checkpoint is two functions, `open_source(path) -> Source` and `open_target(path, model) -> Target`, either of which may
be absent. Everything that can be wrong without reading a tensor is found while opening. `lmx.convert.transfer` then moves the
tensors one by one: `target_rule.to_foreign(source_rule.to_lmx(source.read(name)))`, where the two rules have the same place.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from lmx.convert.rules import Rule
from lmx.model.config import DecoderConfig
from lmx.pipeline.artifact import Manifest
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

FLOATS = ("float32", "float16", "bfloat16")
"""Dtypes of weights that lmx reads and writes, by their names in numpy and ml_dtypes."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a source as `Source.read` returns it.

    Attributes:
      shape: of the whole tensor.
      dtype: one of `FLOATS`; tensors of other types (quantised ones) are read as one of them.
      stored_bytes: bytes that the source keeps for it.
    """

    shape: tuple[int, ...]
    dtype: str
    stored_bytes: int


class Source(Protocol):
    """An opened checkpoint: metadata is read and checked, no tensor is.

    Attributes:
      kind: "hf", "gguf", "meta" or "lmx".
      path: the directory or file.
      family: "llama", "qwen2", ... as the checkpoint says; None for lmx.
      config: the model.
      tensors: every tensor by its name.
      rules: what each tensor that is used fills.
      ignored: tensors that are not used, and why: "computed from the config" (rotary frequencies), "a copy of the embedding".
      notes: sentences about what was decided, for the person who converts.
      origin: folder with files that are copied as they are where the target knows them; None = there is none.
    """

    kind: str
    path: Path
    family: str | None
    config: DecoderConfig
    tensors: Mapping[str, TensorInfo]
    rules: tuple[Rule, ...]
    ignored: Mapping[str, str]
    notes: tuple[str, ...]
    origin: Path | None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop (leading axis) of a tensor, in the dtype of its `TensorInfo`; memory in proportion to those rows.

        Raises:
          ConversionError: the file changed or was cut short since it was opened.
        """

    def tokenizer(self) -> tuple[Tokenizer, Chat | None] | None:
        """Its tokenizer and chat format; None when it has none.

        Raises:
          ValueError: its files are damaged, or of a kind that lmx does not know.
        """

    def close(self) -> None:
        """Releases the files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """All of a model but its tensors, as a target needs it.

    Attributes:
      config: the model.
      family: of the source, where it has one; a target that writes families chooses it, else the first that the config fits.
      dtypes: dtype of each parameter in the source, by its path; one of `FLOATS`.
      dtype: dtype asked for ("float32", "bfloat16", "q8_0", ...); None = as the source.
      tokenizer: None when the source has none.
      chat: None when the source has none.
      origin: folder with foreign files of the source that may be copied (generation_config.json); None = there is none.
      manifest: what the conversion was, for an lmx artifact; its end is filled in when it is finished.
    """

    config: DecoderConfig
    family: str | None
    dtypes: Mapping[str, str]
    dtype: str | None
    tokenizer: Tokenizer | None
    chat: Chat | None
    origin: Path | None = None
    manifest: Manifest | None = None


class Target(Protocol):
    """A checkpoint being written under a temporary name; the caller renames it when `finish` has returned.

    Attributes:
      kind: "hf", "gguf" or "lmx".
      rules: which tensor each place becomes.
      size_bytes: what it will take on disk, about.
      dtype: what the tensors are written as, for people.
      notes: sentences about what was decided.
    """

    kind: str
    rules: tuple[Rule, ...]
    size_bytes: int
    dtype: str
    notes: tuple[str, ...]

    def begin(self) -> None:
        """Creates the files; nothing was written before."""

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Writes rows (leading axis) of a tensor from row `start` on; casts them. Each row of each tensor comes exactly once.

        `rows` may be a view of any strides and as large as the tensor: copy it a few rows at a time.
        """

    def finish(self) -> None:
        """Completes the files and closes them."""

    def abort(self) -> None:
        """Closes the files after a failure; the caller removes them."""
