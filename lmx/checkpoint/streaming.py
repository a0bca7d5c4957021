"""Parameter directories written and read part by part, so that no more than a part is ever in memory.

What `ParameterWriter` leaves is what `save_params` leaves, but for the chunks: a chunk holds (part of) one layer of a stacked
parameter, and of one expert, so that a layer is read without its neighbours. Orbax restores it like any other.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes  # noqa: F401 (numpy learns bfloat16)
import numpy as np
import tensorstore as ts
from etils import epath

from lmx.checkpoint import parameters
from lmx.checkpoint import record as records
from lmx.checkpoint.checkpointer import FORMAT
from lmx.checkpoint.reading import read
from lmx.core import storage
from lmx.core.errors import DiskFullError

BLOCK_ELEMENTS = 8 << 20
"""Largest number of elements in a block, and so in a chunk: 32 MiB in float32."""
_PENDING_WRITES = 3
_UNCACHED_BYTES = 1 << 20  # smaller parameters may be decoded again for each layer
_METADATA = "_METADATA"  # orbax's name for the description of a tree


class ParameterWriter:
    """Writes a parameter directory block by block.

    The directory must not exist. Until `finish` has returned it is not complete, and `restore_params` refuses it: the caller
    builds it beside its final name, or inside a folder that it renames.
    """

    def __init__(self, path: epath.PathLike, shapes: Mapping[str, tuple[Sequence[int], str, int]]) -> None:
        """Describes the parameters and creates the directory.

        Args:
          path: the directory.
          shapes: path of each parameter -> (shape, dtype, number of leading axes of which a chunk holds one index: 1 for stacked
            layers, 2 for stacked experts of stacked layers).
        """
        self._directory = storage.as_path(path)
        self._shapes = {leaf: (tuple(shape), np.dtype(dtype)) for leaf, (shape, dtype, _) in shapes.items()}
        self._chunks = {leaf: _chunk_shape(tuple(shape), leading) for leaf, (shape, _, leading) in shapes.items()}
        self._stores: dict[str, Any] = {}
        self._digests = dict.fromkeys(shapes, 0)
        self._written = dict.fromkeys(shapes, 0)
        self._pending: collections.deque[Any] = collections.deque()
        (self._directory / "arrays").mkdir(parents=True)

    def write(self, leaf: str, index: tuple[int, ...], start: int, block: np.ndarray) -> None:
        """Writes rows start: of `parameter[index]`; every element must be written exactly once.

        Chunks are written whole if `start` and the number of rows are multiples of `block_rows` of the shape behind `index`.

        Args:
          leaf: path of the parameter.
          index: leading indices.
          start: first row.
          block: [rows, ...] of the parameter's dtype; it must not change any more.

        Raises:
          DiskFullError: the disk is full.
        """
        shape, dtype = self._shapes[leaf]
        if block.dtype != dtype:
            raise ValueError(f"a block of {leaf} is {block.dtype}, but the parameter is {dtype}")
        offset = (*index, start, *[0] * (len(shape) - len(index) - 1))
        whole = np.ascontiguousarray(block).reshape(*[1] * len(index), *block.shape)
        where = tuple(slice(first, first + size) for first, size in zip(offset, whole.shape, strict=True))
        try:
            if leaf not in self._stores:
                self._stores[leaf] = self._create(leaf)
            self._pending.append(self._stores[leaf][where].write(whole, can_reference_source_data_indefinitely=True))
            while len(self._pending) > _PENDING_WRITES:
                self._pending.popleft().result()
        except Exception as error:
            self._raise(error)
        self._digests[leaf] = (self._digests[leaf] + records.part_digest(whole, offset)) % 2**32
        self._written[leaf] += whole.size

    def finish(self) -> None:
        """Waits for the last block, and makes the directory complete.

        Raises:
          ValueError: a parameter was not written in full; the message names it.
          DiskFullError: the disk is full.
        """
        for leaf, (shape, _) in self._shapes.items():
            if self._written[leaf] != math.prod(shape):
                raise ValueError(
                    f"{self._written[leaf]} of {math.prod(shape)} elements of {leaf} were written to {self._directory}"
                )
        described = {
            leaf: {"shape": list(shape), "dtype": dtype.name, "digest": self._digests[leaf]}
            for leaf, (shape, dtype) in self._shapes.items()
        }
        try:
            while self._pending:
                self._pending.popleft().result()
            storage.write_json(self._directory / "arrays" / _METADATA, _tree_metadata(self._shapes))
            parameters.write_record(self._directory, {"format": FORMAT, "arrays": described})
        except Exception as error:
            self._raise(error)

    def abort(self) -> None:
        """Waits for the writes that are under way, whatever becomes of them, so that the files can be removed."""
        while self._pending:
            self._pending.popleft().exception()

    def _create(self, leaf: str) -> Any:
        shape, dtype = self._shapes[leaf]
        spec = _spec(self._directory / "arrays", leaf, ocdbt=False)
        spec["store_data_equal_to_fill_value"] = True  # a missing chunk is damage, not zeros
        spec["metadata"] = {
            "shape": shape,
            "chunks": self._chunks[leaf],
            "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.str,
            "compressor": {"id": "zstd", "level": 1},
            "fill_value": None,
        }
        return ts.open(
            ts.Spec(spec), create=True, open=False, context=ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        ).result()

    def _raise(self, error: Exception) -> None:
        if storage.is_disk_full(error):
            raise DiskFullError(
                f"the disk is full: the parameters could not be written to {self._directory}; free some space"
            ) from error
        raise error


class ParameterReader:
    """Reads a parameter directory, however it was written, part by part, and checks what was read against its digests."""

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the record, and no array.

        Raises:
          FileNotFoundError: there are no parameters.
          DamagedError: what is there cannot be read as such.
        """
        self._directory = storage.as_path(path)
        self._where = f"the parameter directory {self._directory}"
        self._record = parameters.read_record(self._directory)
        self._ocdbt = (self._directory / "arrays" / "manifest.ocdbt").exists()
        self._stores: dict[str, Any] = {}
        self._digests = dict.fromkeys(self._record, 0)
        self._seen = dict.fromkeys(self._record, 0)
        self._counted: set[tuple[str, tuple[int, ...], int, int]] = set()  # parts in the digests; a merge reads some twice
        abstract = jax.tree.leaves(records.abstract_tree(self._record))
        self.shapes = dict(zip(records.paths(records.abstract_tree(self._record)), abstract, strict=True))
        """Path -> jax.ShapeDtypeStruct of each parameter."""

    def read(self, leaf: str, index: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Rows start:stop of `parameter[index]`, in the saved dtype.

        Raises:
          DamagedError: the files were cut short or changed.
        """
        shape = self.shapes[leaf].shape
        rest = shape[len(index) + 1 :]
        if leaf not in self._stores:
            self._stores = {leaf: read(lambda: self._open(leaf), self._where)}  # one at a time: a cached chunk may be large
        where = (*(slice(i, i + 1) for i in index), slice(start, stop))
        part: np.ndarray = read(lambda: self._stores[leaf][where].read().result(), self._where)
        if (leaf, index, start, stop) in self._counted:
            return part.reshape(stop - start, *rest)
        self._counted.add((leaf, index, start, stop))
        self._digests[leaf] = (self._digests[leaf] + records.part_digest(part, (*index, start, *[0] * len(rest)))) % 2**32
        self._seen[leaf] += part.size
        if self._seen[leaf] == math.prod(shape) and self._digests[leaf] != self._record[leaf]["digest"]:
            raise records.DamagedError(f"{self._where} is damaged: the values of {leaf} are not those that were saved")
        return part.reshape(stop - start, *rest)

    def _open(self, leaf: str) -> Any:
        spec = {**_spec(self._directory / "arrays", leaf, ocdbt=self._ocdbt), "fill_missing_data_reads": False}
        store = ts.open(ts.Spec(spec), read=True, open=True).result()
        # Where a chunk spans layers, the parameter's decoded chunks are kept, lest each layer decode them again.
        leaf_bytes = math.prod(store.shape) * store.dtype.numpy_dtype.itemsize
        layers_in_chunk = (store.chunk_layout.read_chunk.shape or (1,))[0] or 1
        spans = layers_in_chunk > 1 and leaf_bytes > _UNCACHED_BYTES
        cache = ts.Context({"cache_pool": {"total_bytes_limit": leaf_bytes if spans else 0}})
        opened = ts.open(ts.Spec(spec), read=True, open=True, context=cache).result()
        if tuple(opened.shape) != self.shapes[leaf].shape or opened.dtype.numpy_dtype != self.shapes[leaf].dtype:
            raise ValueError(f"{leaf} is {opened.dtype.name}{list(opened.shape)} on disk, but not in the record")
        return opened


def block_rows(shape: Sequence[int]) -> int:
    """How many rows of an array to handle at a time: at most `BLOCK_ELEMENTS` elements, the rows spread evenly over the blocks."""
    if not shape or shape[0] == 0:
        return 1
    most = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    return math.ceil(shape[0] / math.ceil(shape[0] / most))


def _chunk_shape(shape: tuple[int, ...], leading: int) -> tuple[int, ...]:
    """One index of each leading axis, and a block of the rest."""
    rest = shape[leading:]
    return (*[1] * leading, block_rows(rest), *rest[1:]) if rest else (1,) * len(shape)


def _spec(arrays: epath.Path, leaf: str, *, ocdbt: bool) -> dict[str, Any]:
    name = leaf.replace("/", ".")
    base = {"driver": "file", "path": f"{arrays}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"} if ocdbt else {**base, "path": f"{arrays}/{name}/"}
    return {"driver": "zarr", "kvstore": kvstore}


def _tree_metadata(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, Any]:
    """Orbax's description of the tree; its key type 2 is a dict's key."""
    entries = {
        str(tuple(leaf.split("/"))): {
            "key_metadata": [{"key": key, "key_type": 2} for key in leaf.split("/")],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(shape)},
        }
        for leaf, (shape, _) in shapes.items()
    }
    return {
        "tree_metadata": entries,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
