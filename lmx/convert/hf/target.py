"""A Hugging Face directory being written."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmx.convert.blocks import blocks
from lmx.convert.families.catalog import choose_family
from lmx.convert.hf.directory import INDEX, SINGLE
from lmx.convert.hf.source import CONFIG
from lmx.convert.hf.tokenizer_files import GENERATION_CONFIG, copy_generation_config, write_tokenizer_files
from lmx.convert.rules import Rule, expand
from lmx.convert.safetensors.writer import ITEM_BYTES, SafetensorsWriter
from lmx.convert.source import FLOATS, ConversionError, ModelDescription
from lmx.core import storage

SHARD_BYTES = 5_000_000_000
"""Largest file, where a single tensor is not larger."""
_SLACK_BYTES = 64 << 20  # for everything but the tensors


class HuggingFaceTarget:
    """A Hugging Face directory being written; see `lmx.convert.source.Target`."""

    kind = "hf"

    def __init__(self, path: Path, model: ModelDescription) -> None:
        """Chooses the family and lays out the files; nothing is written.

        Raises:
          ConversionError: no family can hold the model, or the dtype is none of the format.
        """
        if model.dtype is not None and model.dtype not in FLOATS:
            raise ConversionError(f"--dtype {model.dtype} is none of safetensors' {', '.join(FLOATS)}")
        self._path, self._model = path, model
        family, self._fields = choose_family(model.config, model.family)
        self.family = family.name
        self._architecture = family.architecture
        self.rules: tuple[Rule, ...] = tuple(sorted(expand(model.config, family.table, family.name), key=_reading_order))
        self._tensors = {rule.name: (rule.foreign_shape(), model.dtype or model.dtypes[rule.place.leaf]) for rule in self.rules}
        self._shards = _shards({name: _bytes(*form) for name, form in self._tensors.items()})
        self._writers: dict[str, SafetensorsWriter] = {}
        dtypes = [dtype for _, dtype in self._tensors.values()]
        self.dtype = max(FLOATS, key=dtypes.count)
        self.size_bytes = sum(_bytes(*form) for form in self._tensors.values()) + _SLACK_BYTES
        self.notes: tuple[str, ...] = (f"written as the family {family.name}",)

    def begin(self) -> None:
        """Creates the directory, its small files, and the headers of the large ones."""
        self._path.mkdir()
        storage.write_json(self._path / CONFIG, self._config())
        self._write_generation_config()
        self.notes += write_tokenizer_files(self._path, self._model)
        for file, names in self._shards.items():
            writer = SafetensorsWriter(self._path / file, {name: self._tensors[name] for name in names})
            self._writers |= dict.fromkeys(names, writer)
        if len(self._shards) > 1:
            total = {
                "total_parameters": sum(math.prod(shape) for shape, _ in self._tensors.values()),
                "total_size": sum(_bytes(*form) for form in self._tensors.values()),
            }
            weight_map = {name: file for file, names in self._shards.items() for name in names}
            storage.write_json(self._path / INDEX, {"metadata": total, "weight_map": weight_map})

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Writes rows of a tensor, cast to the dtype of the file."""
        for at, block in blocks(rows, self._tensors[name][1]):
            self._writers[name].write(name, block, start + at)

    def finish(self) -> None:
        """Closes the files, their content on the disk."""
        for writer in set(self._writers.values()):
            writer.close(durable=True)

    def abort(self) -> None:
        """Closes the files."""
        for writer in set(self._writers.values()):
            writer.close(durable=False)

    def _config(self) -> dict[str, Any]:
        """`config.json` in the keys of transformers 5 and of those before it."""
        tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return {
            "architectures": [self._architecture],
            "model_type": self.family,
            **self._fields,
            **tokens,
            **self._token_ids(),
            "use_cache": True,
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
        }

    def _token_ids(self) -> dict[str, Any]:
        tokenizer, chat = self._model.tokenizer, self._model.chat
        if tokenizer is None:
            return {}
        stops = [tokenizer.eos_id, *(() if chat is None else chat.stop_ids)]
        unique = list(dict.fromkeys(stops))
        return {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": unique if len(unique) > 1 else unique[0],
            "pad_token_id": tokenizer.pad_id,
        }

    def _write_generation_config(self) -> None:
        """The source's own where there is one, else one with the ids of special tokens."""
        ids = self._token_ids()
        if not copy_generation_config(self._model.origin, self._path) and ids:
            storage.write_json(self._path / GENERATION_CONFIG, ids)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]


def _reading_order(rule: Rule) -> list[tuple[int, str]]:
    """By name, numbers in it by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", rule.name)]


def _shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """File name -> tensors in it, in order, each file at most `SHARD_BYTES` large."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": names for number, names in enumerate(groups, start=1)}


def open_target(path: Path, model: ModelDescription) -> HuggingFaceTarget:
    """Prepares what will lie at `path`; see `HuggingFaceTarget`."""
    return HuggingFaceTarget(path, model)
