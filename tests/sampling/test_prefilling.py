"""The shapes in which prompts are computed."""

import numpy as np
import pytest

from lmx.sampling import prefilling
from lmx.sampling.prefilling import Fill
from lmx.sampling.request import Request, Sampling
from lmx.sampling.sample import Sample


def fill(length: int, slot: int) -> Fill:
    request = Request(prompt=list(range(length)), sampling=Sampling(max_new_tokens=1))
    return Fill([Sample(slot, 0, request, eos_ids=frozenset(), tokenizer=None)], [slot])


def test_prompts_of_one_shape_are_computed_together_and_the_last_token_is_left() -> None:
    fills = [fill(10, 2), fill(200, 0), fill(17, 1), fill(1, 3)]
    chunk = prefilling.next_chunk(fills, most=64, budget=1000, slots=4, pad_id=9)
    assert chunk.fills == [fills[0], fills[2], fills[3]] and chunk.first
    assert chunk.tokens.shape == (4, 16) and chunk.lengths.tolist() == [9, 16, 0, 0] and chunk.rows.tolist() == [2, 1, 3, 4]
    assert chunk.tokens[0].tolist() == [*range(9), *[9] * 7]


def test_long_prompts_go_on_where_they_stopped() -> None:
    long = fill(150, 5)
    pieces = []
    while not long.ready:
        chunk = prefilling.next_chunk([long], most=64, budget=1, slots=8, pad_id=0)
        assert chunk.first == (not long.started)
        long.started, long.done = True, long.done + int(chunk.lengths[0])
        pieces.append(chunk.tokens[0, : chunk.lengths[0]])
    assert [len(piece) for piece in pieces] == [64, 64, 21]
    np.testing.assert_array_equal(np.concatenate(pieces), np.arange(149))


@pytest.mark.parametrize(("slots", "most"), [(1, 256), (8, 100), (64, 256)])
def test_every_call_has_one_of_few_shapes(slots: int, most: int) -> None:
    shapes = prefilling.shapes(slots, most=most, longest=most)
    assert len(shapes) <= 9
    for waiting in range(1, slots + 1):
        for length in range(1, most + 1, 7):
            chunk = prefilling.next_chunk([fill(length, i) for i in range(waiting)], most=most, budget=10**6, slots=slots, pad_id=0)
            assert chunk.tokens.shape in shapes


def test_a_budget_limits_the_rows_of_a_call() -> None:
    fills = [fill(16, slot) for slot in range(8)]
    assert prefilling.next_chunk(fills, most=64, budget=70, slots=8, pad_id=0).tokens.shape == (4, 16)
    assert prefilling.next_chunk(fills, most=64, budget=1, slots=8, pad_id=0).tokens.shape == (1, 16)
