"""The header of one GGUF file: metadata and tensor descriptions, every count, length and offset checked against the file."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from lmx.convert.gguf.cursor import MAX_KEY_BYTES, Cursor
from lmx.convert.gguf.metadata import Metadata, read_value
from lmx.convert.source import ConversionError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_AXES = 4
_SMALLEST_PAIR = 8 + 1 + 4 + 1  # key length, key of one byte, value type, value of one byte
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # name length, name of one byte, number of axes, one axis, type, offset


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
      name: of the tensor.
      shape: slowest axis first, as in numpy (the file lists the fastest first).
      type: how its numbers are stored.
      path: file that holds it.
      offset: of its first byte from the beginning of the file.
      num_bytes: that it takes there.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says before its tensors' numbers.

    Attributes:
      path: of the file.
      version: of the format, 2 or 3.
      metadata: key -> value; arrays are read when asked for.
      tensors: name -> description, in the file's order.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Reads and checks everything before the tensors' numbers, which are not touched.

    Raises:
      FileNotFoundError: there is no such file.
      ConversionError: it is no GGUF file that lmx reads, was cut short, or contradicts itself.
    """
    if path.exists() and not path.is_file():
        raise ConversionError(f"{path} is not a regular file")
    with open(path, "rb", buffering=1 << 20) as file:
        cursor = Cursor(file, path, os.fstat(file.fileno()).st_size)
        version = _version(cursor)
        num_tensors, num_pairs = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of metadata keys")
        cursor.require(
            num_pairs * _SMALLEST_PAIR + num_tensors * _SMALLEST_TENSOR, f"a header of {num_pairs:,} keys, {num_tensors:,} tensors"
        )
        metadata = _metadata(cursor, num_pairs)
        described = [_described(cursor) for _ in range(num_tensors)]
        return Header(path, version, metadata, _placed(cursor, described, _alignment(metadata, path)))


def _version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic number") if cursor.size >= 4 else b""
    if magic != MAGIC:
        raise cursor.error(f"not a GGUF file: it begins with {magic!r} where b'GGUF' is expected")
    version: int = cursor.number("I", "the format's version")
    if version & 0xFFFF == 0 and version:
        raise cursor.error("a big-endian GGUF file; lmx reads little-endian ones, convert it with gguf-convert-endian first")
    if version not in VERSIONS:
        raise cursor.error(f"GGUF version {version}, but lmx reads versions {' and '.join(map(str, VERSIONS))}")
    return version


def _metadata(cursor: Cursor, count: int) -> Metadata:
    metadata = Metadata(cursor.path)
    for index in range(count):
        key = cursor.text(f"metadata key {index:,}", MAX_KEY_BYTES)
        if not key:
            raise cursor.error(f"metadata key {index:,} is empty")
        if key in metadata:
            raise cursor.error(f"the metadata key {key!r} occurs twice")
        metadata.add(key, read_value(cursor, key))
    return metadata


def _alignment(metadata: Metadata, path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment & (alignment - 1):
        raise ConversionError(f"{path}: general.alignment is {alignment!r}, not a power of two")
    return alignment


@dataclasses.dataclass(frozen=True)
class _Described:
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int  # from the beginning of the tensors' numbers
    num_bytes: int


def _described(cursor: Cursor) -> _Described:
    name = cursor.text("a tensor's name", MAX_KEY_BYTES)
    if not name:
        raise cursor.error(f"the tensor described before byte {cursor.position:,} has an empty name")
    num_axes = cursor.number("I", f"the number of axes of {name!r}")
    if not 1 <= num_axes <= MAX_AXES:
        raise cursor.error(f"tensor {name!r} has {num_axes:,} axes; GGUF tensors have 1 to {MAX_AXES}")
    fastest_first = [cursor.number("Q", f"the shape of {name!r}") for _ in range(num_axes)]
    shape = tuple(reversed(fastest_first))
    if 0 in shape:
        raise cursor.error(f"tensor {name!r} of shape {shape} is empty")
    number, offset = cursor.number("I", f"the type of {name!r}"), cursor.number("Q", f"the offset of {name!r}")
    if number not in GGMLQuantizationType._value2member_map_:
        raise cursor.error(f"tensor {name!r} has the unknown type {number}; a newer gguf package may know it")
    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.error(f"tensor {name!r} has rows of {shape[-1]:,} numbers, which are no whole {kind.name} blocks of {block}")
    return _Described(name, shape, kind, offset, math.prod(shape) // block * block_bytes)


def _placed(cursor: Cursor, described: list[_Described], alignment: int) -> dict[str, StoredTensor]:
    """The tensors at their places in the file, none misaligned, outside it, or upon another."""
    begin = -(-cursor.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for tensor in described:
        if tensor.name in tensors:
            raise cursor.error(f"the tensor {tensor.name!r} occurs twice")
        if tensor.offset % alignment:
            raise cursor.error(f"tensor {tensor.name!r} begins at offset {tensor.offset:,}, which is no multiple of {alignment}")
        start = begin + tensor.offset
        if start + tensor.num_bytes > cursor.size:
            raise cursor.error(
                f"tensor {tensor.name!r} of shape {tensor.shape} ({tensor.type.name}) ends at byte "
                f"{start + tensor.num_bytes:,} of a file of {cursor.size:,}; the file was cut short"
            )
        tensors[tensor.name] = StoredTensor(tensor.name, tensor.shape, tensor.type, cursor.path, start, tensor.num_bytes)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.num_bytes > after.offset:
            raise cursor.error(f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors
