"""Order, shards and positions of loaders."""

import json
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lmx.data.batches import LMBatch
from lmx.data.loader import Loader, Order, build_loader
from lmx.data.packing import empty_row

FIRST_OF_NEXT = 10_000  # rows of component i are numbered from i times this


class NumberedRows:
    """Rows of length 1 whose only token is their number."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> LMBatch:
        value: Any = np.array([self._first + index], np.int32)
        return LMBatch(tokens=value, labels=value, loss_mask=value >= 0, segment_ids=value * 0 + 1, positions=value * 0)


def loader(*counts: int, **order: Any) -> Loader:
    components = [NumberedRows(FIRST_OF_NEXT * number, count) for number, count in enumerate(counts)]
    return build_loader(components, [number + 1.0 for number in range(len(counts))], Order(**order), filler=empty_row(1, 0))


def numbers(batch: LMBatch) -> list[int]:
    return np.asarray(batch.tokens)[np.asarray(batch.loss_mask)].tolist()


def test_an_endless_loader_visits_every_row_once_an_epoch_in_another_order() -> None:
    batches = loader(12, batch_size=4, seed=0)
    first, second = ([number for _ in range(3) for number in numbers(next(batches))] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second and first != list(range(12))


def test_the_seed_decides_the_order() -> None:
    first, again, other = (
        [numbers(next(batches)) for _ in range(3)] for batches in (loader(12, batch_size=4, seed=s) for s in (1, 1, 2))
    )
    assert first == again != other


def test_an_endless_mixture_keeps_its_shares() -> None:
    batches = loader(700, 1100, batch_size=8, seed=0)
    drawn = [number for _ in range(150) for number in numbers(next(batches))]
    assert abs(np.mean(np.array(drawn) >= FIRST_OF_NEXT) - 2 / 3) < 0.01


def test_a_finite_pass_is_in_order_and_its_last_batch_is_filled_with_masked_rows() -> None:
    batches = loader(3, 2, batch_size=4, seed=None, epochs=1)
    assert batches.num_batches == 2
    first, last = batches
    assert numbers(first) == [0, 1, 2, FIRST_OF_NEXT] and numbers(last) == [FIRST_OF_NEXT + 1]
    assert last.tokens.shape == (4, 1) and last.segment_ids.tolist() == [[1], [0], [0], [0]]
    assert [numbers(batch) for batch in batches.restarted()] == [numbers(first), numbers(last)]


def test_several_shuffled_epochs_end_after_as_many_visits_of_each_row() -> None:
    drawn = [number for batch in loader(5, batch_size=4, seed=3, epochs=3) for number in numbers(batch)]
    assert sorted(drawn) == sorted(3 * list(range(5)))


@pytest.mark.parametrize("epochs", [None, 2])
def test_shards_are_disjoint_and_join_to_the_batches_of_one_process(epochs: int | None) -> None:
    whole = loader(100, 70, batch_size=6, seed=5, epochs=epochs)
    shards = [loader(100, 70, batch_size=6, seed=5, epochs=epochs, process_index=index, process_count=3) for index in range(3)]
    for _ in range(whole.num_batches or 20):
        parts = [next(shard).tokens for shard in shards]
        assert [part.shape for part in parts] == [(2, 1)] * 3
        assert np.array_equal(np.concatenate(parts), next(whole).tokens)
    assert all(shard.get_state() == whole.get_state() for shard in shards)


@hypothesis.given(st.integers(0, 12), st.integers(0, 3), st.sampled_from([None, 2]))
def test_a_restored_loader_goes_on_with_exactly_the_next_batch(consumed: int, ahead: int, epochs: int | None) -> None:
    original = loader(900, 700, batch_size=4, seed=7, epochs=epochs)
    for _ in range(consumed):
        next(original)
    state = json.loads(json.dumps(original.get_state()))
    restored = loader(900, 700, batch_size=4, seed=7, epochs=epochs)
    for _ in range(ahead):
        next(restored)
    restored.set_state(state)
    assert restored.get_state() == state
    for _ in range(3):
        assert np.array_equal(next(original).tokens, next(restored).tokens)


def test_a_loader_restored_at_the_end_stays_at_the_end() -> None:
    original = loader(9, batch_size=4, seed=None, epochs=1)
    last = list(original)[-1]
    restored = original.restarted()
    restored.set_state({"next_index": 2})
    assert [numbers(batch) for batch in restored] == [numbers(last)]
    assert restored.get_state() == original.get_state() == {"next_index": 3}
    assert list(restored) == []


@pytest.mark.parametrize("state", [{}, {"next_index": -1}, {"next_index": 99}, {"next_index": "2"}, None])
def test_a_foreign_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"n in 0\.\.2"):
        loader(5, batch_size=4, seed=0, epochs=1).set_state(state)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 must be a positive multiple of process_count=4"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, r"process_index=2 must lie in 0\.\.1"),
        ({"batch_size": 4, "epochs": 0}, "epochs=0 must be at least 1"),
    ],
)
def test_impossible_orders_are_refused_with_the_numbers(order: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(seed=0, **order)


def test_loaders_are_what_the_training_loop_expects() -> None:
    batches = loader(5, batch_size=4, seed=0)
    assert iter(batches) is batches and isinstance(next(batches), LMBatch)
    assert batches.num_batches is None and batches.text_bytes is None and batches.dropped == 0
