"""Numbers of GGUF tensors: rows read and dequantised a few at a time, and rows quantised for writing."""

import functools
import math
import sys

import ml_dtypes
import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from lmx.convert.gguf.header import StoredTensor
from lmx.convert.reading import OffsetReader
from lmx.convert.source import ConversionError, TensorInfo

PLAIN = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
"""Types whose bytes are those of a numpy array."""
_CHUNK_NUMBERS = 1 << 18  # numbers dequantised at a time: the gguf package makes several temporary arrays of that size
_CACHED_NUMBERS = 1 << 16  # numbers quantised at a time
_LARGEST = {
    GGMLQuantizationType.F16: 65_519.0,  # rounds down to the largest float16, 65504
    GGMLQuantizationType.Q8_0: 127 * 65_504.0,  # a block is 32 integers of -127..127 times a float16
}


@functools.cache
def is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the `gguf` package turns this type into floating-point numbers."""
    if kind in PLAIN:
        return True
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def describe(tensor: StoredTensor) -> TensorInfo:
    """The tensor as `read_rows` returns it.

    Raises:
      ConversionError: it is of a type that cannot be read as floating-point numbers.
    """
    if not is_readable(tensor.type):
        raise ConversionError(
            f"{tensor.path}: tensor {tensor.name!r} is of type {tensor.type.name}, which the gguf package does not dequantise; "
            "convert the file to another type with llama-quantize first"
        )
    dtype = PLAIN.get(tensor.type, np.dtype(np.float32))
    return TensorInfo(tensor.shape, dtype.name, tensor.num_bytes)


def read_rows(file: OffsetReader, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor's leading axis; quantised types become float32.

    Args:
      file: the open file that holds it.
      tensor: which.
      start: first row.
      stop: row after the last.

    Returns:
      [stop - start, ...] in the dtype that `describe` names.

    Raises:
      ConversionError: the file was cut short since it was opened.
    """
    shape = (stop - start, *tensor.shape[1:])
    row = math.prod(tensor.shape[1:])
    if tensor.type in PLAIN:
        plain = np.empty(shape, PLAIN[tensor.type])
        file.read_into(plain, tensor.offset + start * row * plain.itemsize, tensor.name)
        return plain if sys.byteorder == "little" else plain.byteswap()
    block = GGML_QUANT_SIZES[tensor.type][0]  # blocks run along the last axis; only of a vector can rows begin within one
    first, last = start * row // block, -(-stop * row // block)
    return _dequantised(file, tensor, first, last)[start * row - first * block :][: math.prod(shape)].reshape(shape)


def _dequantised(file: OffsetReader, tensor: StoredTensor, first: int, last: int) -> np.ndarray:
    """Blocks first:last of a quantised tensor as a float32 vector."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.type]
    out = np.empty((last - first) * block, np.float32)
    step = _CHUNK_NUMBERS // block
    with np.errstate(all="ignore"):  # damaged scales give NaN, which conversion reports
        for begin in range(first, last, step):
            end = min(begin + step, last)
            data = np.empty((1, (end - begin) * block_bytes), np.uint8)
            file.read_into(data, tensor.offset + begin * block_bytes, tensor.name)
            out[(begin - first) * block : (end - first) * block] = quants.dequantize(data, tensor.type)[0]
    return out


def encode(rows: np.ndarray, kind: GGMLQuantizationType, name: str) -> np.ndarray:
    """Rows as they are stored.

    Args:
      rows: [..., width] of any floating dtype; width a multiple of 32 for Q8_0.
      kind: F32, F16, BF16 or Q8_0.
      name: of the tensor, for messages.

    Returns:
      Contiguous array whose bytes go into the file.

    Raises:
      ConversionError: a finite number is too large for F16, or for the float16 scale of a Q8_0 block.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = rows.astype(PLAIN[kind].newbyteorder("<"), order="C") if kind in PLAIN else _quantised(rows, kind)
    if kind in _LARGEST and np.isinf(_limited(stored, kind)).any():
        largest = np.abs(rows[np.isfinite(rows)]).max(initial=0).astype(np.float32)
        if largest > _LARGEST[kind]:
            raise ConversionError(f"tensor {name!r} holds {largest:g}, too large for {kind.name}; write it as bfloat16 or float32")
    return stored


def _quantised(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """[1, bytes] of the blocks, a cacheful at a time."""
    flat = np.ascontiguousarray(rows, np.float32).reshape(1, -1)
    parts = [quants.quantize(flat[:, at : at + _CACHED_NUMBERS], kind) for at in range(0, flat.shape[1], _CACHED_NUMBERS)]
    return np.concatenate(parts, axis=1)


def _limited(stored: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The float16 numbers in what is stored: all of F16, the scales of Q8_0."""
    if kind in PLAIN:
        return stored
    return np.ascontiguousarray(stored.reshape(-1, GGML_QUANT_SIZES[kind][1])[:, :2]).view(np.float16)
