"""One file of torch.save: its tensors by name, read by offset."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmx.convert.meta import archive, state
from lmx.convert.reading import OffsetReader
from lmx.convert.source import ConversionError, TensorInfo

_PICKLE = "data.pkl"
_MAX_BYTE_ORDER = 16


class PthFile:
    """An opened file of torch.save.

    Attributes:
      path: of the file.
      tensors: name -> shape and dtype.
      copies: name -> the earlier name of the same numbers, where two tensors are one.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and checks all of it but the tensors' numbers.

        Raises:
          ConversionError: it is no such file, was cut short, or holds anything but tensors of floating-point numbers.
        """
        self.path = path
        self._file = OffsetReader(path)
        try:
            entries = archive.read_entries(self._file)
            self._state = self._read_state(entries)
            self._offsets = {name: self._offset(name, tensor, entries) for name, tensor in self._state.items()}
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.shape, tensor.storage.dtype.name, tensor.num_bytes) for name, tensor in self._state.items()
        }
        self.copies = self._find_copies()

    def _read_state(self, entries: Mapping[str, archive.Entry]) -> Mapping[str, state.PickledTensor]:
        roots = [name.removesuffix(_PICKLE) for name in entries if name == _PICKLE or name.endswith("/" + _PICKLE)]
        if len(roots) != 1:
            raise ConversionError(f"{self.path}: a checkpoint of torch.save holds one {_PICKLE}, this archive has {len(roots)}")
        self._root = roots[0]
        order = entries.get(self._root + "byteorder")
        if order is not None:
            name = self._file.read(order.offset, order.size, "the byte order") if order.size <= _MAX_BYTE_ORDER else b"?"
            if name != b"little":
                raise ConversionError(f"{self.path}: its numbers are of the byte order {name!r}; lmx reads little-endian ones")
        pickled = entries[self._root + _PICKLE]
        if pickled.size > state.MAX_BYTES:
            raise ConversionError(
                f"{self.path}: its {_PICKLE} has {pickled.size:,} bytes; that of a state dict has less than {state.MAX_BYTES:,}"
            )
        try:
            return state.read_state(self._file.read(pickled.offset, pickled.size, _PICKLE))
        except ValueError as error:
            raise ConversionError(f"{self.path}: {error}") from None

    def _offset(self, name: str, tensor: state.PickledTensor, entries: Mapping[str, archive.Entry]) -> int:
        """Where the tensor's numbers begin in the file."""
        storage = tensor.storage
        entry = entries.get(f"{self._root}data/{storage.key}")
        if entry is None:
            raise ConversionError(f"{self.path}: the numbers of {name!r}, data/{storage.key[:40]}, are not in the archive")
        if entry.size != storage.count * storage.dtype.itemsize:
            raise ConversionError(
                f"{self.path}: data/{storage.key} has {entry.size:,} bytes, but {storage.count:,} numbers of {storage.dtype.name} "
                f"take {storage.count * storage.dtype.itemsize:,}"
            )
        return entry.offset + tensor.offset * storage.dtype.itemsize

    def _find_copies(self) -> Mapping[str, str]:
        first: dict[tuple[int, tuple[int, ...]], str] = {}
        for name, offset in self._offsets.items():
            first.setdefault((offset, self._state[name].shape), name)
        originals = {name: first[offset, self._state[name].shape] for name, offset in self._offsets.items()}
        return {name: original for name, original in originals.items() if original != name}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start:stop of a tensor.

        Raises:
          ConversionError: the file was cut short since it was opened.
        """
        tensor = self._state[name]
        out = np.empty((stop - start, *tensor.shape[1:]), tensor.storage.dtype)
        row_bytes = tensor.num_bytes // tensor.shape[0]
        self._file.read_into(out, self._offsets[name] + start * row_bytes, repr(name))
        return out

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
