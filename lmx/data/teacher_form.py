"""What is stored of a teacher's view of a row of tokens, and how it is written into the bytes of a record."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import numpy as np

Quantization = Literal["uint8", "uint16", "float16", "float32"]
# Range in nats of the evenly spaced codes; the largest code stands for probability 0.
_RANGES: dict[str, float] = {"uint8": 16.0, "uint16": 32.0}


class TeacherRow(NamedTuple):
    """A row of T tokens as in `batches.TeacherBatch`: ids [T, k] int32, values [T, k] float32, tail [T] float32."""

    ids: np.ndarray
    values: np.ndarray
    tail: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """The k most probable tokens with their log-probabilities, and the log of what is left for all others.

    Attributes:
      k: tokens; 1 is all that AFM's top-1 mix needs, the whole vocabulary gives the exact divergence.
      quantization: how log-probabilities are written. "uint16": even steps down to -32, off by at most 0.00025 nats, 2 bytes;
        "uint8": even steps down to -16, off by at most 0.032 nats, 1 byte; less probable tokens are raised to the end of the range.
        "float16": off by at most 1 part in 2048 of the log-probability. "float32": exact.
      temperature: T > 0, divides the teacher's logits.
    """

    kind: ClassVar[str] = "topk"
    k: int
    quantization: Quantization = "uint16"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.k, self.temperature)
        if self.quantization not in (*_RANGES, "float16", "float32"):
            raise ValueError(f"quantization={self.quantization!r} is not one of 'uint8', 'uint16', 'float16', 'float32'")

    def bytes_per_token(self, vocab_size: int) -> float:
        """Bytes of a token in a record."""
        return self.k * id_bytes(vocab_size) + (self.k + 1) * np.dtype(self.quantization).itemsize

    def encode(self, row: TeacherRow, vocab_size: int) -> bytes:
        """The bytes of a row."""
        logprobs = np.concatenate([row.values, row.tail[:, None]], axis=1)
        return encode_ids(row.ids, vocab_size) + quantize(logprobs, self.quantization).tobytes()

    def decode(self, data: bytes, length: int, vocab_size: int) -> TeacherRow:
        """The row of `length` tokens in the bytes; ValueError if they are of another size."""
        width = length * self.k * id_bytes(vocab_size)
        expected = width + length * (self.k + 1) * np.dtype(self.quantization).itemsize
        if len(data) != expected:
            raise ValueError(f"{len(data)} bytes where {length} tokens of {self} take {expected}")
        logprobs = dequantize(np.frombuffer(data, self.quantization, offset=width), self.quantization).reshape(length, self.k + 1)
        ids = decode_ids(data[:width], vocab_size).reshape(length, self.k)
        return TeacherRow(ids, np.ascontiguousarray(logprobs[:, :-1]), np.ascontiguousarray(logprobs[:, -1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Tokens drawn from the teacher's distribution with replacement: the different ones, and how often each came.

    Attributes:
      k: draws a token.
      temperature: T > 0, divides the teacher's logits.
    """

    kind: ClassVar[str] = "sampled"
    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.k, self.temperature)
        if self.k >= 1 << 16:
            raise ValueError(f"k={self.k} draws a token are more than the 65535 that a count can hold")

    def bytes_per_token(self, vocab_size: int) -> float:
        """Bytes of a token in a record, at most: repeated draws are written once."""
        return 2 + self.k * (id_bytes(vocab_size) + self._count_type.itemsize)

    def encode(self, row: TeacherRow, vocab_size: int) -> bytes:
        """The bytes of a row whose ids are the draws; its values are not read."""
        draws = np.sort(row.ids, axis=1)
        first = np.concatenate([np.ones((len(draws), 1), bool), draws[:, 1:] != draws[:, :-1]], axis=1)
        starts = np.flatnonzero(first)
        counts = np.diff(np.append(starts, draws.size))  # runs don't cross rows: a row's first place always begins one
        sizes = np.sum(first, axis=1).astype(np.uint16)
        return sizes.tobytes() + encode_ids(draws[first], vocab_size) + counts.astype(self._count_type).tobytes()

    def decode(self, data: bytes, length: int, vocab_size: int) -> TeacherRow:
        """The row of `length` tokens in the bytes; ValueError if they are of another size."""
        sizes = np.frombuffer(data[: 2 * length], np.uint16).astype(np.int64)
        total, width = int(sizes.sum()), id_bytes(vocab_size)
        expected = 2 * length + total * (width + self._count_type.itemsize)
        if len(sizes) != length or len(data) != expected or sizes.max(initial=0) > self.k:
            raise ValueError(f"{len(data)} bytes are no {length} tokens of {self}")
        ids, counts = np.zeros((length, self.k), np.int32), np.zeros((length, self.k), np.float32)
        places = np.arange(self.k) < sizes[:, None]
        ids[places] = decode_ids(data[2 * length : 2 * length + total * width], vocab_size)
        counts[places] = np.frombuffer(data[2 * length + total * width :], self._count_type)
        return TeacherRow(ids, counts, np.zeros(length, np.float32))

    @property
    def _count_type(self) -> np.dtype:
        return np.dtype(np.uint8 if self.k < 256 else np.uint16)


TeacherForm = TopK | Samples


def id_bytes(vocab_size: int) -> int:
    """Bytes of a token id: 2, 3 or 4."""
    return 2 if vocab_size <= 1 << 16 else 3 if vocab_size <= 1 << 24 else 4


def encode_ids(ids: np.ndarray, vocab_size: int) -> bytes:
    """Ids as little-endian integers of `id_bytes` bytes."""
    whole = np.ascontiguousarray(ids, "<i4").view(np.uint8).reshape(-1, 4)
    return whole[:, : id_bytes(vocab_size)].tobytes()


def decode_ids(data: bytes, vocab_size: int) -> np.ndarray:
    """The inverse of `encode_ids`: [N] int32."""
    parts = np.frombuffer(data, np.uint8).reshape(-1, id_bytes(vocab_size))
    whole = np.zeros((len(parts), 4), np.uint8)
    whole[:, : parts.shape[1]] = parts
    return whole.view("<i4")[:, 0].astype(np.int32)


def quantize(logprobs: np.ndarray, quantization: Quantization) -> np.ndarray:
    """Log-probabilities as an array of the dtype that the quantization is named after."""
    if quantization not in _RANGES:
        return logprobs.astype(quantization)
    dtype = np.dtype(quantization)
    zero = np.iinfo(dtype).max
    steps = np.rint(np.clip(-logprobs, 0, _RANGES[quantization]) * ((zero - 1) / _RANGES[quantization]))
    return np.where(np.isneginf(logprobs), zero, steps).astype(dtype)


def dequantize(codes: np.ndarray, quantization: Quantization) -> np.ndarray:
    """The inverse of `quantize`, float32."""
    if quantization not in _RANGES:
        return codes.astype(np.float32)
    zero = np.iinfo(codes.dtype).max
    values = codes.astype(np.float32) * np.float32(-_RANGES[quantization] / (zero - 1))
    return np.where(codes == zero, np.float32(-np.inf), values)


def _check(k: int, temperature: float) -> None:
    if k < 1:
        raise ValueError(f"k={k}, the stored ids of a token, must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
