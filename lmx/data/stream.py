"""An endless stream of tokens that can be read from any token on, in rows of any length: nothing is lost where the length changes.

The documents of each component, repeated without end, are cut into blocks of the longest row. Each pass takes a component's blocks
in another order; the mixture says which component gives the next block; and the blocks end to end are the stream. Rows are slices
of it. All are full, so tokens can be counted in rows.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from lmx.data.batches import LMBatch
from lmx.data.loader import Loader, stack
from lmx.data.mixture import ENDLESS, MixSchedule, Stretches
from lmx.data.packing import PackedDocuments
from lmx.data.ramp import Ramp


class Blocks:
    """The blocks of one component in the order in which they are read: block n -> first place in the endless documents."""

    def __init__(self, places: int, block: int, seed: int | None) -> None:
        """Plans the passes.

        Args:
          places: places of all documents together.
          block: places of a block.
          seed: of the order, anew in each pass; None = the documents' own.
        """
        self._pass = max(1, places // block)
        self._block, self._seed = block, seed
        self._orders: dict[int, Any] = {}

    def start(self, index: int) -> int:
        """First place of a block; places go on beyond the last document's with the first's."""
        number, within = divmod(index, self._pass)
        return (number * self._pass + self._shuffled(number, within)) * self._block

    def _shuffled(self, number: int, within: int) -> int:
        if self._seed is None or self._pass == 1:
            return within
        if number not in self._orders:
            seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
            self._orders = {number: grain.MapDataset.range(self._pass).shuffle(seed=seed)}  # a function of the index, no table
        return int(self._orders[number][within])


class TokenStream:
    """Rows of a mixture from any token on."""

    def __init__(self, components: Sequence[PackedDocuments], mixture: Stretches, *, block: int, seed: int | None) -> None:
        """Joins the components.

        Args:
          components: packed documents.
          mixture: which component gives which block.
          block: tokens of a block, the longest row.
          seed: of the order of blocks; None = the documents' own.
        """
        self._components, self._mixture, self._block = components, mixture, block
        seeds = [None if seed is None else _seed(seed, number) for number in range(len(components))]
        self._blocks = [Blocks(part.places, block, seed) for part, seed in zip(components, seeds, strict=True)]

    def row(self, start: int, length: int) -> LMBatch:
        """The tokens start..start + length of the stream as a row; a row over two blocks has a boundary between them."""
        parts, stop = [], start + length
        while start < stop:
            number, skipped = divmod(start, self._block)
            component, index = self._mixture[number]
            size = min(self._block - skipped, stop - start)
            parts.append((self._components[component], self._blocks[component].start(index) + skipped, size))
            start += size
        return PackedDocuments.join(parts, length)


class RampedBatches:
    """Batch n of a run as a function of n: this process's rows, stacked."""

    def __init__(self, stream: TokenStream, ramp: Ramp, *, process_index: int, process_count: int) -> None:
        """Takes what gives rows, the shapes, and which rows are this process's.

        Raises:
          ValueError: a phase's rows can't be shared out evenly.
        """
        for phase in ramp.phases:
            if phase.batch_size % process_count:
                raise ValueError(f"batch_size={phase.batch_size} must be a positive multiple of process_count={process_count}")
        self._stream, self._ramp, self._index, self._count = stream, ramp, process_index, process_count

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> LMBatch:
        phase = self._ramp.phases[self._ramp.index(index)]
        own = phase.batch_size // self._count
        first = self._ramp.tokens(index) + self._index * own * phase.length
        return stack([self._stream.row(first + row * phase.length, phase.length) for row in range(own)])


def build_stream_loader(
    components: Sequence[PackedDocuments],
    names: Sequence[str],
    mix: MixSchedule,
    ramp: Ramp,
    *,
    seed: int | None,
    process_index: int,
    process_count: int,
) -> Loader:
    """An endless loader of a mixture and shapes that may both change along the run; its state is the number of the next batch."""
    block = ramp.longest
    stream = TokenStream(components, mix.stretches(names, block), block=block, seed=seed)
    batches = RampedBatches(stream, ramp, process_index=process_index, process_count=process_count)
    return Loader(grain.MapDataset.source(batches), num_batches=None)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
