"""Meta's checkpoints in one or several files: each weight is cut along the axis by which model parallelism splits it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from lmx.convert.meta.pth import PthFile
from lmx.convert.safetensors.reader import DTYPES, SafetensorsFile
from lmx.convert.source import ConversionError, TensorInfo

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
ROTARY = re.compile(r"rope\.freqs|layers\.\d+\.attention\.inner_attention\.rope\.freqs")
_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")
_BY_ROWS = re.compile(r"layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.weight|output\.weight")
_BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")


class Shard(Protocol):
    """One file of a checkpoint.

    Attributes:
      path: of the file.
      tensors: name -> shape and dtype.
      copies: name -> the earlier name of the same numbers.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    copies: Mapping[str, str]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start:stop of a tensor."""

    def close(self) -> None:
        """Closes the file."""


class SafetensorsShard:
    """A safetensors file as a shard."""

    def __init__(self, path: Path) -> None:
        """Opens the file and checks its header.

        Raises:
          ConversionError: it is damaged, or holds tensors of a type that is no weight's.
        """
        self.path = path
        self._file = SafetensorsFile(path)
        self.copies: Mapping[str, str] = {}
        for name, entry in self._file.entries.items():
            if entry.dtype not in DTYPES:
                self.close()
                raise ConversionError(f"{path}: the tensor {name!r} is of type {entry.dtype}; lmx reads {', '.join(DTYPES)}")
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(entry.shape, DTYPES[entry.dtype].name, entry.end - entry.begin)
            for name, entry in self._file.entries.items()
        }

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start:stop of a tensor."""
        entry = self._file.entries[name]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        return self._file.read(entry, start * row_bytes, (stop - start, *entry.shape[1:]))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Checkpoint:
    """All files of a checkpoint, seen as whole tensors.

    Attributes:
      tensors: name -> shape and dtype of the whole.
      copies: name -> the earlier name of the same numbers.
      paths: the files.
    """

    def __init__(self, shards: list[Shard], model_dim: int) -> None:
        """Puts the shards together; nothing is read.

        Args:
          shards: in order.
          model_dim: D, by which the cut of the embedding is told.

        Raises:
          ConversionError: the shards do not fit together.
        """
        self._shards = shards
        self.paths = tuple(shard.path for shard in shards)
        first = shards[0]
        for shard in shards[1:]:
            if odd := sorted(first.tensors.keys() ^ shard.tensors.keys()):
                raise ConversionError(
                    f"{shard.path} and {first.path} do not hold parts of the same tensors: {odd[0]!r} is in one only"
                )
            if shard.copies != first.copies:
                raise ConversionError(f"{shard.path} and {first.path} disagree on which tensors are copies of others")
        self.copies = first.copies
        self._axes = {name: self._axis(name, model_dim) for name in first.tensors}
        self.tensors: Mapping[str, TensorInfo] = {name: self._whole(name) for name in first.tensors}

    def _axis(self, name: str, model_dim: int) -> int | None:
        """The axis along which a weight is cut; None = every file holds all of it."""
        if len(self._shards) == 1:
            return None
        if name == EMBEDDING:  # Llama 2 cuts it by columns, Llama 3 by rows
            shape = self._shards[0].tensors[name].shape
            return 0 if len(shape) == 2 and shape[1] == model_dim else 1
        return 0 if _BY_ROWS.fullmatch(name) else 1 if _BY_COLUMNS.fullmatch(name) else None

    def _whole(self, name: str) -> TensorInfo:
        axis, first = self._axes[name], self._shards[0].tensors[name]
        for shard in self._shards[1:]:
            part = shard.tensors[name]
            if (part.shape, part.dtype) != (first.shape, first.dtype):
                raise ConversionError(
                    f"{shard.path}: its part of {name!r} is {part.dtype} {part.shape}, "
                    f"that of {self._shards[0].path.name} {first.dtype} {first.shape}"
                )
        if axis is None:
            return first
        if len(first.shape) != 2:
            raise ConversionError(
                f"{self._shards[0].path}: {name!r} is cut over {len(self._shards)} files, but has the shape {first.shape}"
            )
        shape = tuple(length * (len(self._shards) if index == axis else 1) for index, length in enumerate(first.shape))
        return TensorInfo(shape, first.dtype, first.stored_bytes * len(self._shards))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start:stop of a whole tensor.

        Raises:
          ConversionError: a file was cut short, or the files disagree on a tensor that each holds whole.
        """
        axis = self._axes[name]
        if axis is None:
            rows = self._shards[0].read(name, start, stop)
            for shard in self._shards[1:]:
                if not np.array_equal(rows.view(np.uint8), shard.read(name, start, stop).view(np.uint8)):
                    raise ConversionError(
                        f"{shard.path} and {self._shards[0].path} hold different numbers for {name!r}, which is not cut"
                    )
            return rows
        info = self.tensors[name]
        out = np.empty((stop - start, *info.shape[1:]), info.dtype)
        length = self._shards[0].tensors[name].shape[axis]
        for index, shard in enumerate(self._shards):
            if axis == 1:
                out[:, index * length : (index + 1) * length] = shard.read(name, start, stop)
                continue
            begin, end = max(start, index * length), min(stop, (index + 1) * length)
            if begin < end:
                out[begin - start : end - start] = shard.read(name, begin - index * length, end - index * length)
        return out

    def close(self) -> None:
        """Closes the files."""
        for shard in self._shards:
            shard.close()


def open_shards(directory: Path) -> list[Shard]:
    """The checkpoint files of a directory, in order.

    Raises:
      FileNotFoundError: there are none.
      ConversionError: one of them is missing or damaged.
    """
    whole = directory / "consolidated.safetensors"
    if whole.is_file():
        return [SafetensorsShard(whole)]
    numbered = sorted(
        (int(match[1]), path) for path in directory.glob("consolidated.*.pth") if (match := _SHARD.fullmatch(path.name))
    )
    if not numbered:
        raise FileNotFoundError(f"{directory} has neither consolidated.safetensors nor consolidated.00.pth")
    if [number for number, _ in numbered] != list(range(len(numbered))):
        raise ConversionError(f"{directory}: of the files up to {numbered[-1][1].name} some are missing; {len(numbered)} are there")
    opened: list[Shard] = []
    try:
        for _, path in numbered:
            opened.append(PthFile(path))
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return opened
