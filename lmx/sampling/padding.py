"""Token lists to right-padded rows, in few shapes: every new shape costs a compilation."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array

_SMALLEST_BUCKET = 64  # tokens; prefill of a few padding tokens costs less than compiling another shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a decoder reads: one document a row.

    Attributes:
      tokens: [B, T] int32.
      segment_ids: [B, T] int32, 1 on tokens and 0 on padding.
      positions: [B, T] int32.
    """

    tokens: Array
    segment_ids: Array
    positions: Array


def power_of_two(size: int, *, least: int, most: int) -> int:
    """The smallest power-of-two multiple of `least` that holds `size`, and at most `most`."""
    bucket = least
    while bucket < size:
        bucket *= 2
    return min(bucket, most)


def groups_by_length(lengths: Sequence[int], *, max_length: int, batch_size: int) -> list[tuple[int, list[int]]]:
    """Splits sequences into groups of one padded length (a power of two that depends on the sequence alone).

    Args:
      lengths: tokens in each sequence, all at most `max_length`.
      max_length: upper limit of the padded length.
      batch_size: most rows a group.

    Returns:
      (padded length, indices of the sequences) of each group.
    """
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        buckets.setdefault(power_of_two(length, least=_SMALLEST_BUCKET, most=max_length), []).append(index)
    groups = []
    for bucket in sorted(buckets):
        rows = buckets[bucket]
        groups += [(bucket, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return groups


def pad_rows(sequences: Sequence[Sequence[int]], *, rows: int, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads sequences to [rows, length]; rows beyond the last sequence are all padding.

    Returns:
      tokens [rows, length] int32 and the number of tokens of each row, [rows] int32.
    """
    tokens = np.full((rows, length), pad_id, np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        lengths[row] = len(sequence)
    return tokens, lengths


def right_padded(tokens: Array, lengths: Array) -> Tokens:
    """Segment ids and positions of right-padded rows: tokens [B, T] int32, lengths [B] int32."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    return Tokens(tokens, segment_ids, positions)


def check_ids(sequences: Sequence[Sequence[int]], *, vocab_size: int, what: str) -> None:
    """Raises ValueError when a sequence is empty or holds an id outside the model's vocabulary."""
    for index, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(f"{what} {index} is empty; give it at least one token, for example the BOS token")
        low, high = min(sequence), max(sequence)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{what} {index} holds token id {low if low < 0 else high}, but the model's vocabulary is 0..{vocab_size - 1}; "
                "was it encoded with another tokenizer?"
            )
