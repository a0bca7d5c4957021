"""Grouping and padding of token lists."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from lmx.sampling import padding


@hypothesis.given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 8))
def test_groups_hold_every_sequence_once_within_their_length_and_size(lengths: list[int], batch_size: int) -> None:
    groups = padding.groups_by_length(lengths, max_length=100, batch_size=batch_size)
    assert sorted(index for _, rows in groups for index in rows) == list(range(len(lengths)))
    for length, rows in groups:
        assert len(rows) <= batch_size
        assert all(lengths[index] <= length <= 100 for index in rows)


def test_padded_lengths_are_powers_of_two_up_to_the_limit() -> None:
    assert [padding.power_of_two(size, least=16, most=100) for size in (1, 16, 17, 64, 65, 100)] == [16, 16, 32, 64, 100, 100]


def test_rows_are_padded_on_the_right_and_filled_up_with_empty_ones() -> None:
    tokens, lengths = padding.pad_rows([[1, 2, 3], [4]], rows=3, length=4, pad_id=9)
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]])
    batch = padding.right_padded(tokens, lengths)
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
