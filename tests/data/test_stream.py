"""Rows of changing length from one stream: nothing lost, nothing repeated, the same from any place on."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmx.data.loader import Loader
from lmx.data.mixture import MixPoint, MixSchedule
from lmx.data.packing import PackedDocuments
from lmx.data.ramp import Phase, Ramp
from lmx.data.store import open_store
from lmx.data.stream import Blocks
from lmx.data.text import Component, PackedText
from lmx.tokenizer.bytes import ByteTokenizer

RAMP = Ramp(
    (
        Phase(from_tokens=0, batch_size=4, length=8),
        Phase(from_tokens=96, batch_size=4, length=16),
        Phase(from_tokens=288, batch_size=8, length=16),
        Phase(from_tokens=544, batch_size=2, length=8),
    )
)
FLAT = Ramp((Phase(from_tokens=0, batch_size=2, length=16),))


@pytest.fixture(scope="module")
def data(text_source: Callable[..., Any]) -> PackedText:
    letters = "abcdefghijklmnopqrstuvwxyz"
    upper = text_source(*(letter.upper() * size for size, letter in enumerate(letters, start=5)))
    lower = text_source(*(letter * size for size, letter in enumerate(letters, start=3)))
    return PackedText(components=(Component(source=upper, weight=3, name="upper"), Component(source=lower, name="lower")))


def loader(data: PackedText, ramp: Ramp | None, **options: Any) -> Loader:
    first = (ramp or FLAT).phases[0]
    return data.loader(ByteTokenizer(), batch_size=first.batch_size, length=first.length, ramp=ramp, **({"seed": 3} | options))


def labels(batches: Loader, tokens: int) -> np.ndarray:
    """The first labels of a loader in the order of its rows, -1 where they don't count."""
    found, total = [], 0
    while total < tokens:
        batch = next(batches)
        found.append(np.where(batch.loss_mask, batch.labels, -1).ravel())
        total += found[-1].size
    return np.concatenate(found)[:tokens]


def test_the_tokens_are_the_same_whatever_the_shapes(data: PackedText) -> None:
    for seed in (3, None):
        np.testing.assert_array_equal(labels(loader(data, RAMP, seed=seed), 900), labels(loader(data, FLAT, seed=seed), 900))


def test_batches_have_the_shapes_of_their_phase_and_no_padding(data: PackedText) -> None:
    batches = loader(data, RAMP)
    for step in range(24):
        phase, batch = RAMP.phases[RAMP.index(step)], next(batches)
        assert batch.tokens.shape == (phase.batch_size, phase.length)
        assert (batch.segment_ids > 0).all() and (batch.positions[:, 0] == 0).all()


def test_a_long_row_of_one_document_has_no_boundary_after_the_switch(text_source: Callable[..., Any]) -> None:
    text = PackedText(components=(Component(source=text_source("x" * 10_000)),))
    batches = loader(text, RAMP)
    for _ in range(3):
        next(batches)
    assert (next(batches).segment_ids == 1).all()


def test_every_place_comes_once_in_a_pass_and_the_next_pass_has_another_order() -> None:
    for places, block in ((1000, 16), (160, 16), (10, 16)):
        blocks, size = Blocks(places, block, 5), max(1, places // block)
        passes = [[blocks.start(number * size + index) for index in range(size)] for number in range(2)]
        for number in range(2):
            assert sorted(passes[number]) == [(number * size + index) * block for index in range(size)]
        assert size < 3 or [start - size * block for start in passes[1]] != passes[0] != sorted(passes[0])


def test_documents_go_on_from_the_first_behind_the_last(text_source: Callable[..., Any]) -> None:
    packed = PackedDocuments(open_store(text_source("abc", "de"), "text", "train", ByteTokenizer()), ByteTokenizer(), 4)
    assert packed.places == 9
    row, again = (PackedDocuments.join([(packed, start, 12)], 12) for start in (6, 15))
    text = ByteTokenizer().decode(row.labels[row.loss_mask].tolist())
    assert text == "e" + "abc" + "de"
    assert np.array_equal(row.labels, again.labels) and row.segment_ids.tolist() == [1] * 3 + [2] * 5 + [3] * 4


@pytest.mark.parametrize("steps", [0, 2, 3, 5, 9, 13])
def test_a_restored_loader_goes_on_in_the_middle_of_the_ramp(data: PackedText, steps: int) -> None:
    original = loader(data, RAMP)
    for _ in range(steps):
        next(original)
    restored = loader(data, RAMP)
    restored.set_state(json.loads(json.dumps(original.get_state())))
    for _ in range(3):
        first, second = next(original), next(restored)
        assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "labels", "segment_ids"))


def test_shards_join_to_the_batches_of_one_process(data: PackedText) -> None:
    whole, shards = loader(data, RAMP), [loader(data, RAMP, process_index=i, process_count=2) for i in range(2)]
    for _ in range(12):
        assert np.array_equal(np.concatenate([next(shard).tokens for shard in shards]), next(whole).tokens)
    with pytest.raises(ValueError, match="batch_size=2 must be a positive multiple of process_count=4"):
        loader(data, RAMP, process_count=4)


def test_shares_follow_the_schedule_across_a_change_of_shape(data: PackedText) -> None:
    points = (MixPoint(from_tokens=0, weights={"upper": 1}), MixPoint(from_tokens=160, weights={"upper": 0.25, "lower": 0.75}))
    mixed = PackedText(components=data.components, mix=MixSchedule(points=points))
    found = labels(loader(mixed, RAMP), 160 + 64 * 16).reshape(-1, 16)
    is_lower = ((found >= ord("a") + 3) | (found >= ByteTokenizer().encode("a")[0])).any(axis=1)
    assert not is_lower[:10].any() and is_lower[10:].mean() == pytest.approx(0.75, abs=0.01)


def test_a_schedule_alone_needs_no_ramp_and_a_finite_pass_ignores_it(data: PackedText) -> None:
    mixed = PackedText(components=data.components, mix=MixSchedule(points=(MixPoint(from_tokens=0, weights={"lower": 1}),)))
    assert next(loader(mixed, None)).tokens.shape == (2, 16)
    assert labels(loader(mixed, None), 200).max() >= ByteTokenizer().encode("a")[0]
    once = [loader(text, None, epochs=1, seed=None) for text in (mixed, data)]
    assert np.array_equal(next(once[0]).tokens, next(once[1]).tokens)
    with pytest.raises(ValueError, match="a finite pass has batches of one shape"):
        loader(data, RAMP, epochs=1)


def test_unknown_and_unnamed_components_are_refused(data: PackedText) -> None:
    mix = MixSchedule(points=(MixPoint(from_tokens=0, weights={"uper": 1}),))
    with pytest.raises(ValueError, match="names 'uper'; the components are 'upper', 'lower'"):
        PackedText(components=data.components, mix=mix)
