"""Parameters of a finished artefact: one directory, complete or absent, that any mesh can read."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from lmx.checkpoint import record as records
from lmx.checkpoint.checkpointer import FORMAT
from lmx.checkpoint.reading import read
from lmx.core import storage
from lmx.core.errors import DiskFullError
from lmx.core.types import Params, PyTree

_CHUNK_BYTES = 64 << 20
"""Arrays larger than this are written in chunks of about this size, stacked layers apart, so that one layer is read alone."""


def save_params(path: epath.PathLike, params: Params) -> None:
    """Writes a nested dict of arrays and waits until it is complete; an existing directory is replaced.

    Raises:
      DiskFullError: the disk is full; nothing is left behind.
    """
    directory = storage.as_path(path)
    record = {"format": FORMAT, "arrays": records.with_digests(params)}
    chunks = jax.tree_util.tree_map_with_path(lambda path, leaf: _save_args(path[0].key, leaf), params)
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(params, save_args=chunks), record=ocp.args.JsonSave(record))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory, args=items, force=True)
    except Exception as error:
        for partial in directory.parent.glob(f"{directory.name}.*tmp*"):
            partial.rmtree()
        if storage.is_disk_full(error):
            raise DiskFullError(f"the disk is full: the parameters could not be written to {directory}; free some space") from error
        raise


def describe_params(path: epath.PathLike) -> PyTree:
    """Nested dict of jax.ShapeDtypeStruct: what `save_params` wrote there, without reading the arrays.

    Raises:
      FileNotFoundError: there are no parameters.
      DamagedError: what is there cannot be read as such.
    """
    return records.abstract_tree(read_record(storage.as_path(path)))


def restore_params(path: epath.PathLike, abstract: PyTree | None = None, shardings: PyTree | None = None) -> Params:
    """Reads what `save_params` wrote.

    Args:
      path: its directory.
      abstract: pytree of jax.ShapeDtypeStruct that the parameters must match; None takes what is there.
      shardings: a sharding, or a pytree of them of the same structure; None puts everything on the first local device.

    Raises:
      FileNotFoundError: there are no parameters.
      MismatchError: they are of another architecture; the message names the first that differs.
      DamagedError: they were cut short or changed on disk.
    """
    directory = storage.as_path(path)
    saved = read_record(directory)
    where = f"the parameter directory {directory}"
    abstract = records.abstract_tree(saved) if abstract is None else abstract
    records.check_same(saved, abstract, where)
    if shardings is None:
        shardings = SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        same = shardings
        shardings = jax.tree.map(lambda _: same, abstract)
    target = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings)
    restored = read(lambda: _restore(directory, arrays=ocp.args.StandardRestore(target)).arrays, where)
    records.check_digests(saved, restored, where)
    return restored


def read_record(directory: epath.Path) -> dict[str, Any]:
    """Path -> {"shape", "dtype", "digest"} of every parameter there.

    Raises:
      FileNotFoundError: there are no parameters.
      DamagedError: what is there cannot be read as such.
    """
    if not directory.exists():
        raise FileNotFoundError(f"there are no parameters at {directory}; did the stage that makes them finish?")
    where = f"the parameter record of {directory}"
    return read(lambda: _restore(directory, record=ocp.args.JsonRestore()).record["arrays"], where)


def write_record(directory: epath.Path, record: dict[str, Any]) -> None:
    """Puts the record beside arrays that were written part by part, and so makes the directory complete."""
    storage.write_json(directory / "record" / "metadata", record)  # where orbax keeps a JSON item


def _save_args(top: str, leaf: Any) -> ocp.SaveArgs:
    if leaf.size * leaf.dtype.itemsize <= _CHUNK_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if top == "blocks" else ())


def _restore(directory: epath.Path, **items: ocp.args.CheckpointArgs) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(directory, args=ocp.args.Composite(**items))
