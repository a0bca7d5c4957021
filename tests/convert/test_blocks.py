"""Contiguous copies in tiles."""

import ml_dtypes
import numpy as np
import pytest

from lmx.checkpoint import streaming
from lmx.convert.blocks import blocks


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_blocks_of_transposed_arrays_are_the_array_cast_and_contiguous(monkeypatch, dtype):
    monkeypatch.setattr(streaming, "BLOCK_ELEMENTS", 5000)
    weight = np.random.default_rng(0).standard_normal((300, 130)).astype(dtype)
    for view in (
        weight,
        weight.T,
        weight.T.reshape(130, 10, 30),
        weight.reshape(10, 30, 130).transpose(2, 0, 1),
        weight[:, :1],
        weight[0],
    ):
        for target in ("float32", "bfloat16"):
            found = list(blocks(view, target))
            assert all(block.flags.c_contiguous and block.dtype.name == target for _, block in found)
            assert [start for start, _ in found] == list(np.cumsum([0] + [len(block) for _, block in found])[:-1])
            np.testing.assert_array_equal(np.concatenate([block for _, block in found]), view.astype(target))


def test_a_block_is_a_copy():
    array = np.zeros((2, 3), np.float32)
    ((_, block),) = blocks(array, "float32")
    array[:] = 1
    assert not block.any()
