"""The tensors of a Hugging Face directory: one safetensors file, or several with an index."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmx.convert import json_file
from lmx.convert.safetensors.reader import DTYPES, Entry, SafetensorsFile
from lmx.convert.source import ConversionError, TensorInfo

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pth", "*.pt")
_FUSED = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)")


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor as it is read: an entry of a file, or a part of one, or one with rows of zeros behind it.

    Attributes:
      file: where it lies.
      entry: what the file says of it.
      shape: of the view.
      skip_bytes: bytes of the entry before the view.
      stored_rows: rows that the file has; further ones are zeros. None = all.
    """

    file: SafetensorsFile
    entry: Entry
    shape: tuple[int, ...]
    skip_bytes: int = 0
    stored_rows: int | None = None

    @property
    def info(self) -> TensorInfo:
        """Shape and dtype, in numpy's names where it is a dtype of weights."""
        dtype = DTYPES[self.entry.dtype].name if self.entry.dtype in DTYPES else self.entry.dtype
        return TensorInfo(self.shape, dtype, self.entry.end - self.entry.begin)

    def with_rows(self, rows: int) -> "View":
        """The view cut, or filled with zeros, to a number of rows."""
        stored = self.shape[0] if self.stored_rows is None else self.stored_rows
        return dataclasses.replace(self, shape=(rows, *self.shape[1:]), stored_rows=min(stored, rows))

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop of it."""
        if not self.shape:
            return self.file.read(self.entry)
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        rest = self.shape[1:]
        stored = self.shape[0] if self.stored_rows is None else self.stored_rows
        row_bytes = int(np.prod(rest, dtype=np.int64)) * DTYPES[self.entry.dtype].itemsize
        count = max(0, min(stop, stored) - start)
        rows = self.file.read(self.entry, self.skip_bytes + start * row_bytes, (count, *rest))
        if count == stop - start:
            return rows
        return np.concatenate([rows, np.zeros((stop - start - count, *rest), rows.dtype)])


def open_views(directory: Path) -> dict[str, View]:
    """Every tensor of a directory by its name; expert tensors that are fused count as one an expert.

    Raises:
      FileNotFoundError: the directory holds no weights.
      ConversionError: an index or a file is malformed, or names what isn't there.
    """
    files = _weight_files(directory)
    views: dict[str, View] = {}
    opened: list[SafetensorsFile] = []
    try:
        for path, listed in files.items():
            opened.append(SafetensorsFile(path))
            _check_listed(opened[-1], listed, directory / INDEX)
            for name, entry in opened[-1].entries.items():
                if name in views:
                    raise ConversionError(f"the tensor {name!r} stands in both {views[name].file.path} and {path}")
                views[name] = View(opened[-1], entry, entry.shape)
        return _split_fused(views)
    except BaseException:
        for file in opened:
            file.close()
        raise


def _weight_files(directory: Path) -> dict[Path, frozenset[str] | None]:
    """The files with weights, and the tensors that the index says they have (None: there is no index)."""
    if (directory / SINGLE).exists():
        return {directory / SINGLE: None}
    if (directory / INDEX).exists():
        return dict(_indexed_files(directory))
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    if shards:
        raise ConversionError(f"{directory} has {shards[0]} but neither {SINGLE} nor {INDEX}; fetch the index that belongs to it")
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        raise ConversionError(
            f"{directory} holds PyTorch pickles only, which can run code and are never opened; save the model as safetensors "
            "(transformers: model.save_pretrained(DIR)) and convert that"
        )
    raise FileNotFoundError(f"{directory} holds no weights: there is neither {SINGLE} nor {INDEX}")


def _indexed_files(directory: Path) -> Mapping[Path, frozenset[str]]:
    index = directory / INDEX
    weight_map = json_file.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index} must have a weight_map of tensor names to file names")
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise ConversionError(f"{index} gives the tensor {name[:80]!r} the file {str(file)[:80]!r}, which is no name")
        listed.setdefault(file, set()).add(name)
    for file in listed:
        if not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
            raise ConversionError(f"{index} names the file {file[:120]!r}: only safetensors files in the same directory are read")
        if not (directory / file).exists():
            raise ConversionError(f"{index} names the file {file}, which is missing from {directory}; fetch it")
    return {directory / file: frozenset(names) for file, names in listed.items()}


def _check_listed(file: SafetensorsFile, listed: frozenset[str] | None, index: Path) -> None:
    """The index and the file agree about the tensors."""
    if listed is None:
        return
    if missing := listed - file.entries.keys():
        raise ConversionError(f"{index} says that {file.path.name} has the tensor {min(missing)[:120]!r}, but it has not")
    if extra := file.entries.keys() - listed:
        raise ConversionError(f"{file.path} has the tensor {min(extra)[:120]!r}, which {index.name} does not name there")


def _split_fused(views: Mapping[str, View]) -> dict[str, View]:
    """Fused expert tensors [E, 2 F, D] and [E, D, F], as transformers 5 holds them in memory, as tensors of one expert each."""
    split: dict[str, View] = {}
    for name, view in views.items():
        match = _FUSED.fullmatch(name)
        if match is None or len(view.shape) != 3 or view.entry.dtype not in DTYPES or view.shape[1] % 2:
            split[name] = view
            continue
        parts = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
        experts, rows, columns = view.shape[0], view.shape[1] // len(parts), view.shape[2]
        part_bytes = rows * columns * DTYPES[view.entry.dtype].itemsize
        for number in range(experts * len(parts)):
            expert, part = divmod(number, len(parts))
            part_name = f"{match[1]}.{expert}.{parts[part]}.weight"
            if part_name in views:
                raise ConversionError(f"{view.file.path} has {name!r}, and {part_name!r} stands in {views[part_name].file.path}")
            split[part_name] = dataclasses.replace(view, shape=(rows, columns), skip_bytes=number * part_bytes)
    return split
