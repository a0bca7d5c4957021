"""Writing safetensors files whose tensors arrive in any order and in parts: the header comes first and gives each its place."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NAMES: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class SafetensorsWriter:
    """A file of known tensors; it is complete when every tensor has been written."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[Sequence[int], str]]) -> None:
        """Creates the file and writes its header.

        Args:
          path: must not exist.
          tensors: name -> (shape, dtype "float32" | "float16" | "bfloat16"), in the order in which they lie in the file.

        Raises:
          FileExistsError: the file exists.
        """
        self.path = path
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, int]] = {}  # where a tensor begins, from the first byte of the data; bytes of a row
        at = 0
        for name, (shape, dtype) in tensors.items():
            size = math.prod(shape) * ITEM_BYTES[dtype]
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            self._places[name] = (at, math.prod(shape[1:]) * ITEM_BYTES[dtype])
            at += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # readers that map the file want the data aligned
        self._data = 8 + len(text)
        self.size_bytes = self._data + at
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._write(len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(self._file, self.size_bytes)

    def write(self, name: str, rows: np.ndarray, start: int = 0) -> None:
        """Writes rows start: of a tensor.

        Args:
          name: the tensor.
          rows: C-contiguous, of the tensor's dtype.
          start: first row.
        """
        begin, row_bytes = self._places[name]
        self._write(rows.reshape(-1).view(np.uint8).data, self._data + begin + start * row_bytes)

    def close(self, *, durable: bool) -> None:
        """Closes the file, on the disk if `durable`; a second call does nothing."""
        if self._file >= 0:
            if durable:
                os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while len(view):
            count = os.pwrite(self._file, view[: 256 << 20], offset)
            view, offset = view[count:], offset + count
