"""The host's handle of the pool: parameters and slots on the device, and the programs that work on them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmx.core.types import Params, PyTree
from lmx.model.decoder import Model
from lmx.model.unstacked import unstack_params
from lmx.sampling import decoding, padding, prefilling, slots
from lmx.sharding import place
from lmx.sharding.rules import Rules

_LEAST_CAPACITY = 64  # tokens of a row; the rows double as samples grow, up to max_length


class Pool:
    """A fixed number of rows whose length, the capacity, follows the longest sample in powers of two.

    Attributes:
      capacity: tokens that a row can hold now.
    """

    def __init__(
        self, model: Model, params: Params, *, rows: int, max_length: int, kv_dtype: str | None, mesh: Mesh | None, rules: Rules
    ) -> None:
        """An empty pool; arguments as of the engine."""
        # Where XLA copies a layer out of the stack to multiply with it, decoding takes a copy of the parameters without stacks.
        unstacked = jax.default_backend() == "cpu" and (mesh is None or mesh.size == 1)
        self._model, self._mesh, self._rules = model, mesh, rules
        self._rows, self._max_length = rows, max_length
        self._layout = slots.Layout(model.decode, model.init_cache, kv_dtype, mesh, rules, unstacked)
        self._params: Params = None  # for prompts
        self._decode_params: Params = None
        self.update_params(params)
        self.reset(1)

    @property
    def vocabulary(self) -> int:
        """V of the model."""
        return self._model.config.vocab_size

    def update_params(self, params: Params) -> None:
        """As `Engine.update_params`."""
        expected = _abstract_params(self._model.init)
        structure: Any = jax.tree.structure(expected)
        if structure != jax.tree.structure(params):
            raise ValueError("the parameters do not have the model's structure; were they made for another model?")
        for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True):
            if leaf.shape != want.shape:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(f"parameter {name} has shape {leaf.shape}, but the model's has {want.shape}")
        if self._mesh is not None and self._mesh.size > 1:
            params = jax.device_put(params, place.shardings(self._model.axes, params, self._mesh, self._rules))
        self._params = params
        self._decode_params = unstack_params(params) if self._layout.unstacked else params

    def reset(self, length: int) -> None:
        """Empties all rows; they will hold `length` tokens."""
        self.capacity = self._bucket(length)
        self._slots: Any = None  # the old ones go before the new ones come
        self._slots = slots.init_slots(layout=self._layout, rows=self._rows, capacity=self.capacity, vocabulary=self.vocabulary)

    def fit(self, length: int, *, empty: bool) -> None:
        """Lengthens the rows to hold `length` tokens; shortens them when that is far less, or no row is in use (`empty`).

        The capacity goes from one power of two to the next, so that few programs are compiled.
        """
        need = self._bucket(length)
        if empty:
            if need != self.capacity:
                self.reset(length)
            return
        while self.capacity < need:
            self._resize(self._bucket(self.capacity + 1))
        if 4 * need <= self.capacity:
            self._resize(self._bucket(-(-self.capacity // 2)))

    def compute(self, chunk: prefilling.Chunk) -> None:
        """Computes a piece of some prompts."""
        if chunk.first:
            cache = slots.prefill_first(self._params, chunk.tokens, chunk.lengths, layout=self._layout)
            self._slots = slots.place_rows(self._slots, cache, chunk.rows, layout=self._layout, capacity=self.capacity)
        else:
            self._slots = slots.prefill_more(
                self._params, self._slots, chunk.tokens, chunk.lengths, chunk.rows, layout=self._layout
            )

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies prompts from one row to another, for (source, target) pairs."""
        if pairs:
            count = padding.power_of_two(len(pairs), least=1, most=self._rows)
            source, target = np.zeros(count, np.int32), np.full(count, self._rows, np.int32)
            source[: len(pairs)], target[: len(pairs)] = zip(*pairs, strict=True)
            self._slots = slots.copy_rows(self._slots, source, target, layout=self._layout)

    def note_seen(self, row: int, prompt: Sequence[int]) -> None:
        """Makes the prompt's tokens those that a repetition penalty weakens."""
        tokens = np.full(self._bucket(len(prompt)), self.vocabulary, np.int32)
        tokens[: len(prompt)] = prompt
        self._slots = slots.note_seen(self._slots, np.int32(row), tokens, layout=self._layout)

    def activate(self, setup: slots.RowSetup, chosen: np.ndarray) -> None:
        """Lets the `chosen` rows, [B] bool, begin to decode."""
        self._slots = slots.activate(self._slots, setup, chosen, layout=self._layout)

    def decode(self, stopped: np.ndarray, *, patience: int, steps: int) -> decoding.Drawn:
        """Draws tokens; arguments as of `decoding.decode`."""
        self._slots, drawn = decoding.decode(
            self._decode_params, self._slots, stopped, np.int32(patience), layout=self._layout, steps=steps
        )
        return drawn

    def warm_up(self, *, steps: int, prefill_chunk: int, longest: int) -> None:
        """Compiles the programs of all capacities, for prompts of up to `longest` tokens, and leaves an empty pool."""
        nobody = np.zeros(self._rows, bool)
        for capacity in self._capacities():
            self.reset(capacity)
            for chunk in self._empty_chunks(prefill_chunk, longest):
                self.compute(chunk)
            for count in {padding.power_of_two(size, least=1, most=self._rows) for size in range(1, self._rows)}:
                self.copy([(0, self._rows)] * count)
            self.note_seen(0, [0] * capacity)
            self.activate(slots.empty_setup(self._rows, self.vocabulary), nobody)
            self.decode(nobody, patience=1, steps=steps)
            if capacity < self._max_length:
                self._resize(self._bucket(capacity + 1))
                self._resize(capacity)
        self.reset(1)

    def _empty_chunks(self, prefill_chunk: int, longest: int) -> Iterator[prefilling.Chunk]:
        """Calls of every shape that write nothing."""
        for count, length in prefilling.shapes(self._rows, most=min(prefill_chunk, self.capacity), longest=longest):
            tokens, lengths = np.zeros((count, length), np.int32), np.zeros(count, np.int32)
            for first in (True, False) if min(longest, self.capacity) > prefill_chunk else (True,):
                yield prefilling.Chunk([], tokens, lengths, np.full(count, self._rows, np.int32), first)

    def _resize(self, capacity: int) -> None:
        self._slots = slots.resize(self._slots, layout=self._layout, capacity=capacity)
        self.capacity = capacity

    def _capacities(self) -> Iterator[int]:
        capacity = self._bucket(1)
        while capacity < self._max_length:
            yield capacity
            capacity = self._bucket(capacity + 1)
        yield capacity

    def _bucket(self, length: int) -> int:
        return padding.power_of_two(length, least=min(_LEAST_CAPACITY, self._max_length), most=self._max_length)


@functools.lru_cache(maxsize=64)
def _abstract_params(init: Callable[[jax.Array], Params]) -> PyTree:
    return jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
