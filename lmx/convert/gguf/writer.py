"""A GGUF file being written: header first, then the rows of its tensors in any order."""

import dataclasses
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from lmx.convert.gguf.header import DEFAULT_ALIGNMENT, MAGIC
from lmx.convert.gguf.metadata import ARRAY, BOOL, STRING
from lmx.convert.gguf.numbers import encode
from lmx.convert.source import ConversionError

VERSION = 3
_UINT8, _UINT32, _INT32, _FLOAT32, _UINT64, _INT64 = 0, 4, 5, 6, 10, 11
_CHUNK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
      name: of the tensor.
      shape: slowest axis first; the last a multiple of the type's block.
      type: F32, F16, BF16 or Q8_0.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the leading axis; of the only axis, of one number."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape[1:]) * block_bytes // block

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.row_bytes * self.shape[0]


class GgufWriter:
    """Writes one GGUF file of version 3.

    Attributes:
      path: of the file.
      size: that it will have, in bytes.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> None:
        """Lays the file out; nothing is written yet.

        Args:
          path: of the file; it is replaced.
          metadata: bool, int, float (stored as float32), str, bytes (an array of them), or a list of int, float or str.
          tensors: in the order in which they will lie.

        Raises:
          ConversionError: a metadata value has no GGUF type.
        """
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._offsets: dict[str, int] = {}
        offset = 0
        for tensor in tensors:
            self._offsets[tensor.name] = offset
            offset = _aligned(offset + tensor.num_bytes)
        parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
        for key, value in metadata.items():
            parts += [_text(key), _typed(key, value)]
        for tensor in tensors:
            axes = tuple(reversed(tensor.shape))
            parts += [_text(tensor.name), struct.pack(f"<I{len(axes)}Q", len(axes), *axes)]
            parts.append(struct.pack("<IQ", tensor.type, self._offsets[tensor.name]))
        self._header = b"".join(parts)
        self._begin = _aligned(len(self._header))
        self.size = self._begin + offset
        self._missing = {tensor.name: tensor.shape[0] for tensor in tensors}
        self._descriptor = -1

    def begin(self) -> None:
        """Creates the file at its full size and writes the header."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.truncate(self._descriptor, self.size)
        self._write_at(0, self._header)

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Casts or quantises rows of a tensor and writes them, a few at a time.

        Args:
          name: of the tensor.
          rows: [n, ...] of any floating dtype and any strides.
          start: index of the first on the leading axis.

        Raises:
          ConversionError: a number is too large for the type.
        """
        tensor = self._tensors[name]
        if rows.shape[1:] != tensor.shape[1:] or start + len(rows) > tensor.shape[0]:
            raise ValueError(
                f"rows {start}:{start + len(rows)} of shape {rows.shape[1:]} do not belong to {name!r} of shape {tensor.shape}"
            )
        step = max(1, _CHUNK_BYTES // (4 * math.prod(rows.shape[1:])))
        for first in range(0, len(rows), step):
            chunk = encode(rows[first : first + step], tensor.type, name)
            position = self._begin + self._offsets[name] + (start + first) * tensor.row_bytes
            self._write_at(position, chunk.reshape(-1).view(np.uint8).data)
        self._missing[name] -= len(rows)

    def finish(self) -> None:
        """Makes the file durable and closes it.

        Raises:
          ConversionError: not every row was written.
        """
        if left := [name for name, count in self._missing.items() if count]:
            raise ConversionError(f"{self.path}: {len(left)} tensors were not written whole, the first is {left[0]!r}")
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
        self.abort()

    def abort(self) -> None:
        """Closes the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write_at(self, position: int, data: bytes | memoryview) -> None:
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is not open for writing; call begin first")
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view[: 1 << 30], position)
            view, position = view[count:], position + count


def _aligned(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _typed(key: str, value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, bytes):
        return struct.pack("<IIQ", ARRAY, _UINT8, len(value)) + value
    if isinstance(value, list | tuple):
        kind = _kind_of(key, value)
        items = b"".join(map(_text, value)) if kind == STRING else np.asarray(value, _DTYPES[kind]).tobytes()
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    kind = BOOL if isinstance(value, bool) else _kind_of(key, [value])
    if kind == BOOL:
        return struct.pack("<I?", kind, value)
    if kind == _INT32 and value >= 0:
        kind = _UINT32  # llama.cpp asks for sizes and ids as unsigned
    return struct.pack("<I", kind) + (_text(value) if kind == STRING else np.asarray(value, _DTYPES[kind]).tobytes())


_DTYPES = {_UINT32: "<u4", _INT32: "<i4", _FLOAT32: "<f4", _UINT64: "<u8", _INT64: "<i8"}


def _kind_of(key: str, values: Sequence[Any]) -> int:
    """The number of the type that holds all of the values."""
    if all(isinstance(value, str) for value in values):
        return STRING
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        if low >= -(1 << 31) and high < 1 << 31:
            return _INT32
        if low >= -(1 << 63) and high < 1 << 63:
            return _INT64
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _FLOAT32
    raise ConversionError(
        f"the metadata value of {key!r} is neither a number nor text, nor a list of one of them: {str(values)[:80]}"
    )
