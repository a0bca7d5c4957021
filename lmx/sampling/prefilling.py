"""Which prompts are computed next, and in which shapes: few shapes, since each is compiled once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmx.sampling import padding
from lmx.sampling.sample import Sample

_STEP = 4  # lengths and row counts of calls go up by this factor; between them there is padding
_LEAST_LENGTH, _MOST_ROWS = 16, 16
_MANY_SLOTS = 16  # so many slots are there for throughput: padding matters less, and still fewer shapes will do


@dataclasses.dataclass
class Fill:
    """A prompt on its way into the pool, in the slot of the first of the samples that share it.

    Attributes:
      samples: of one request.
      slots: one for each of them.
      done: tokens in the cache; the prompt's last token is left to decoding.
      started: the slot was emptied.
    """

    samples: list[Sample]
    slots: list[int]
    done: int = 0
    started: bool = False

    @property
    def missing(self) -> int:
        """Tokens to compute."""
        return len(self.samples[0].request.prompt) - 1 - self.done

    @property
    def ready(self) -> bool:
        """Decoding may begin."""
        return self.started and not self.missing


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One call: the next tokens of several prompts.

    Attributes:
      fills: the prompts.
      tokens: [P, T] int32, right-padded.
      lengths: [P] int32.
      rows: [P] int32, slots, the pool's size where a row of the call is padding.
      first: the prompts' beginnings.
    """

    fills: list[Fill]
    tokens: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    first: bool


def next_chunk(fills: Sequence[Fill], *, most: int, budget: int, slots: int, pad_id: int) -> Chunk:
    """The next tokens of the first prompt, and of those behind it that need the same shape.

    Args:
      fills: prompts that are not ready, at least one, in their order of arrival.
      most: tokens of a prompt in one call, at most.
      budget: tokens in one call; the least call may have more.
      slots: size of the pool.
      pad_id: fills rows.
    """
    first, length = not fills[0].started, _length(fills[0], most, slots)
    alike = [fill for fill in fills if (not fill.started) == first and _length(fill, most, slots) == length]
    count = call_rows(min(len(alike), max(1, budget // length)), slots)
    chosen = alike[:count]
    pieces = [fill.samples[0].request.prompt[fill.done : fill.done + min(fill.missing, length)] for fill in chosen]
    tokens, lengths = padding.pad_rows(pieces, rows=count, length=length, pad_id=pad_id)
    rows = np.full(count, slots, np.int32)
    rows[: len(chosen)] = [fill.slots[0] for fill in chosen]
    return Chunk(chosen, tokens, lengths, rows, first)


def call_rows(waiting: int, slots: int) -> int:
    """Rows of a call for some waiting prompts: the power of four that they fill more than half, else the one before."""
    rows = _STEP if slots >= _MANY_SLOTS else 1
    while rows < _MOST_ROWS and 2 * waiting > rows * _STEP:
        rows *= _STEP
    return rows


def shapes(slots: int, *, most: int, longest: int) -> list[tuple[int, int]]:
    """The shapes (P, T) that calls may have for prompts of up to `longest` tokens, at most `most` of them in a call."""
    lengths = sorted({_call_length(missing, most, slots) for missing in range(min(longest, most))})
    counts = sorted({call_rows(waiting, slots) for waiting in range(1, slots + 1)})
    return [(count, length) for length in lengths for count in counts]


def _length(fill: Fill, most: int, slots: int) -> int:
    return _call_length(fill.missing, most, slots)


def _call_length(missing: int, most: int, slots: int) -> int:
    """T of the next call for a prompt that lacks some tokens."""
    length = _LEAST_LENGTH * (_STEP if slots >= _MANY_SLOTS else 1)
    while length < missing:
        length *= _STEP
    return min(length, most)
