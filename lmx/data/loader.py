"""From rows to batches: shuffle, mix, batch, shard by process, prefetch, resume.

All is random access until the last step, so the state of a loader is the number of its next batch, and the global batch n is the
same whatever the number of processes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.data.mixture import ExactShares

# One thread keeps a few batches ready; rows are slices of arrays, so more threads would only compete for the interpreter.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows make up which batch.

    Attributes:
      batch_size: rows of the global batch, over all processes.
      seed: of the shuffling, anew in each epoch; None = rows in their own order.
      epochs: passes over all rows; None = endless, and then the components are mixed by weight.
      process_index: this process.
      process_count: processes; each reads its own, equally many rows of every batch.
    """

    batch_size: int
    seed: int | None
    epochs: int | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(f"batch_size={self.batch_size} must be a positive multiple of process_count={self.process_count}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index} must lie in 0..{self.process_count - 1}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be at least 1, or None for no end")


class Loader:
    """Iterator over this process's part of each global batch, numpy arrays [batch_size / process_count, T].

    Attributes:
      num_batches: batches from the first to the last, None = endless.
      text_bytes: UTF-8 bytes of all texts whose tokens are labels, over all processes; None where that is not one number.
      dropped: rows of the source left out because they were too long.
    """

    def __init__(
        self, batches: grain.MapDataset, *, num_batches: int | None, text_bytes: int | None = None, dropped: int = 0
    ) -> None:
        self._batches = batches
        self._iterator = batches.to_iter_dataset(READ_AHEAD).__iter__()
        self.num_batches, self.text_bytes, self.dropped = num_batches, text_bytes, dropped

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def restarted(self) -> "Loader":
        """A loader of the same batches that stands before the first one."""
        return Loader(self._batches, num_batches=self.num_batches, text_bytes=self.text_bytes, dropped=self.dropped)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position: the number of the next batch, the same on all processes."""
        return dict(self._iterator.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on with exactly the batch that would have come next when the state was taken.

        Raises:
          ValueError: the state is none of a loader, or lies behind the last batch.
        """
        index = state.get("next_index") if isinstance(state, dict) else None
        if not isinstance(index, int) or not 0 <= index <= len(self._batches):
            raise ValueError(
                f"{state!r} is no position in these batches; expected {{'next_index': n}} with n in 0..{len(self._batches)}"
            )
        self._iterator.set_state({"next_index": index})


def build_loader(
    components: Sequence[Any],
    weights: Sequence[float],
    order: Order,
    *,
    filler: Any,
    text_bytes: int | None = None,
    dropped: int = 0,
) -> Loader:
    """Joins components of rows into a loader.

    Args:
      components: sequences of LMBatch or PreferenceBatch rows ([T] leaves), none empty.
      weights: shares of the rows in an endless mixture. A finite pass visits every row of every component once, whatever they are.
      order: batch size, shuffling, epochs, sharding.
      filler: a wholly masked row; it completes the last batch of a finite loader.
      text_bytes: see Loader, of one epoch.
      dropped: see Loader.
    """
    rows = _endless(components, weights, order) if order.epochs is None else _finite(components, order, order.epochs, filler)
    batches = rows.batch(order.batch_size // order.process_count, batch_fn=stack)[order.process_index :: order.process_count]
    if order.epochs is None:
        return Loader(batches, num_batches=None, dropped=dropped)
    total = None if text_bytes is None else order.epochs * text_bytes
    return Loader(batches, num_batches=len(batches), text_bytes=total, dropped=dropped)


def _endless(components: Sequence[Any], weights: Sequence[float], order: Order) -> grain.MapDataset:
    datasets = [_shuffled(grain.MapDataset.source(rows), order.seed, number).repeat() for number, rows in enumerate(components)]
    return grain.MapDataset.select_from_datasets(datasets, ExactShares(weights))


def _finite(components: Sequence[Any], order: Order, epochs: int, filler: Any) -> grain.MapDataset:
    rows = grain.MapDataset.concatenate([grain.MapDataset.source(rows) for rows in components])
    rows = _shuffled(rows, order.seed, 0).repeat(epochs)
    missing = -len(rows) % order.batch_size
    return grain.MapDataset.concatenate([rows, grain.MapDataset.source([filler] * missing)]) if missing else rows


def _shuffled(dataset: grain.MapDataset, seed: int | None, number: int) -> grain.MapDataset:
    if seed is None:
        return dataset
    return dataset.shuffle(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))


def stack(rows: Sequence[Any]) -> Any:
    """Rows [T] as one batch [B, T]."""
    if isinstance(rows[0], PreferenceBatch):
        return PreferenceBatch(chosen=stack([row.chosen for row in rows]), rejected=stack([row.rejected for row in rows]))
    fields: dict[str, Any] = {
        field.name: np.stack([getattr(row, field.name) for row in rows]) for field in dataclasses.fields(LMBatch)
    }
    return LMBatch(**fields)
