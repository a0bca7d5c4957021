"""Reading safetensors files that cannot be trusted.

Format: 8 bytes little-endian N, N bytes of a JSON header {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data,
which the offsets are relative to; every byte of the data belongs to exactly one tensor.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lmx.convert import json_file
from lmx.convert.reading import OffsetReader
from lmx.convert.source import ConversionError

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
)
"""Types that are read as weights."""
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
_BITS |= {"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "F16": 16, "BF16": 16, "F32": 32}
_MAX_AXES = 8


class Entry(NamedTuple):
    """A tensor of a file.

    Attributes:
      dtype: the format's name, "BF16".
      shape: of the tensor.
      begin: first byte in the file.
      end: behind the last byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An opened file whose header has been checked; tensors are read, never mapped."""

    def __init__(self, path: Path) -> None:
        """Opens a file and checks its header; no tensor is read.

        Raises:
          ConversionError: the file is cut short or malformed; one sentence says where.
        """
        self.path = path
        self._reader = OffsetReader(path)
        try:
            self.metadata, self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, entry: Entry, skip_bytes: int = 0, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor, or a contiguous part of one.

        Args:
          entry: the tensor; its dtype must be one of `DTYPES`.
          skip_bytes: bytes of it before the part.
          shape: of the part; None = the whole tensor.

        Raises:
          ConversionError: the file has become shorter.
        """
        array = np.empty(entry.shape if shape is None else shape, DTYPES[entry.dtype])
        self._reader.read_into(array, entry.begin + skip_bytes, "a tensor")
        return array

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._reader.close()

    def _read_header(self) -> tuple[dict[str, str], dict[str, Entry]]:
        path, size = self.path, self._reader.size
        if size < 8:
            raise ConversionError(f"{path} has {size} bytes: it is no safetensors file, or was cut short")
        length = int.from_bytes(self._reader.read(0, 8, "the length of the header"), "little")
        if length > size - 8:
            raise ConversionError(f"{path} announces a header of {length} bytes but has {size}: no safetensors file, or cut short")
        if length > json_file.MAX_BYTES:
            raise ConversionError(f"{path} has a header of {length} bytes; at most {json_file.MAX_BYTES} are read")
        header = json_file.parse_object(self._reader.read(8, length, "the header"), f"the header of {path}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ConversionError(f"__metadata__ of {path} must map strings to strings")
        entries = {name: _entry(value, 8 + length, f"the tensor {name[:120]!r} of {path}") for name, value in header.items()}
        self._check_layout(entries, 8 + length)
        return metadata, entries

    def _check_layout(self, entries: Mapping[str, Entry], begin: int) -> None:
        """Every byte behind the header belongs to exactly one tensor."""
        at, before = begin, "the header"
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.end > self._reader.size:
                raise ConversionError(
                    f"the tensor {name[:120]!r} ends at byte {entry.end}, but {self.path} has {self._reader.size}: it was cut short"
                )
            if entry.begin < at:
                raise ConversionError(f"the tensor {name[:120]!r} of {self.path} overlaps {before}: the header is wrong")
            if entry.begin > at:
                raise ConversionError(f"bytes {at} to {entry.begin} of {self.path} belong to no tensor: the header is wrong")
            at, before = entry.end, repr(name[:120])
        if at != self._reader.size:
            raise ConversionError(f"{self.path} has {self._reader.size - at} bytes behind its last tensor: the header is wrong")


def _entry(value: Any, base: int, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ConversionError(f"{where} must be described by dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ConversionError(f"{where} has the unknown dtype {str(dtype)[:40]!r}; known are {', '.join(sorted(_BITS))}")
    if not _is_sizes(shape) or len(shape) > _MAX_AXES:
        raise ConversionError(f"{where} has the shape {str(shape)[:80]}; at most {_MAX_AXES} sizes from 0 on were expected")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ConversionError(f"{where} has the data_offsets {str(offsets)[:80]}; [begin, end] was expected")
    needed = math.prod(shape) * _BITS[dtype]
    if needed % 8 or offsets[1] - offsets[0] != needed // 8:
        raise ConversionError(
            f"{where} occupies {offsets[1] - offsets[0]} bytes, but {dtype} of the shape {shape} takes {needed // 8}"
        )
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
