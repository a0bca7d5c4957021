"""Invariants of packed rows."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from lmx.data.batches import LMBatch, without_label
from lmx.data.loader import stack
from lmx.data.packing import Example, PackedDocuments, PackedExamples, PairRows, best_fit, empty_row
from lmx.data.store import TokenStore
from lmx.tokenizer.bytes import ByteTokenizer

TOKENIZER = ByteTokenizer()
BOS, EOS, PAD = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id
DOCUMENTS = st.lists(st.lists(st.integers(3, 258), min_size=1, max_size=30), min_size=1, max_size=8)


def packed(documents: list[list[int]], length: int) -> LMBatch:
    offsets = np.cumsum([0, *map(len, documents)])
    rows = PackedDocuments(TokenStore(np.concatenate(documents).astype(np.uint16), offsets, 0), TOKENIZER, length)
    return stack([rows[index] for index in range(len(rows))])


def segments(batch: LMBatch) -> list[tuple[int, np.ndarray]]:
    """(row, places) of each segment, in order."""
    found = []
    for row, ids in enumerate(batch.segment_ids):
        found += [(row, np.flatnonzero(ids == segment)) for segment in range(1, int(ids.max()) + 1)]
    return found


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_every_token_of_every_document_is_a_label_exactly_once_and_in_order(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    assert batch.labels[batch.loss_mask].tolist() == [index for document in documents for index in [*document, EOS]]


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_inputs_are_bos_document_and_eos_each_exactly_once_and_in_order(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    assert batch.tokens[batch.segment_ids > 0].tolist() == [index for document in documents for index in [BOS, *document, EOS]]
    assert batch.tokens[batch.loss_mask].tolist() == [index for document in documents for index in [BOS, *document]]


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_the_loss_mask_is_false_exactly_on_padding_and_on_eos(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    ends = batch.tokens == EOS
    assert np.array_equal(~batch.loss_mask, (batch.segment_ids == 0) | ends)
    assert (batch.labels[ends] == PAD).all() and ends.sum() == len(documents)


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_segments_are_contiguous_and_labels_are_the_next_inputs(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    for row, places in segments(batch):
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        assert batch.positions[row, places].tolist() == list(range(len(places)))
        assert batch.labels[row, places[:-1]].tolist() == batch.tokens[row, places[1:]].tolist()


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_a_segment_ends_with_eos_or_with_its_row(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    for row, places in segments(batch):
        ends = (batch.tokens[row, places] == EOS).tolist()
        assert not any(ends[:-1])
        assert ends[-1] or places[-1] == length - 1


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_only_the_last_row_has_padding_and_padding_is_empty(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    padding = batch.segment_ids == 0
    assert not padding[:-1].any() and not padding[-1, 0]
    assert (np.diff(padding[-1].astype(int)) >= 0).all()
    assert (batch.tokens[padding] == PAD).all() and (batch.labels[padding] == PAD).all() and (batch.positions[padding] == 0).all()


@hypothesis.given(DOCUMENTS, st.integers(1, 12))
def test_a_document_goes_on_in_the_next_row_from_its_last_label(documents: list[list[int]], length: int) -> None:
    batch = packed(documents, length)
    for row in range(1, len(batch.tokens)):
        ended = batch.tokens[row - 1, -1] == EOS
        assert batch.tokens[row, 0] == (BOS if ended else batch.labels[row - 1, -1])


def test_a_small_case_by_hand() -> None:
    batch = packed([[10, 11, 12, 13], [20]], 4)
    assert batch.tokens.tolist() == [[BOS, 10, 11, 12], [13, EOS, BOS, 20], [EOS, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[10, 11, 12, 13], [EOS, PAD, 20, EOS], [PAD, PAD, PAD, PAD]]
    assert batch.loss_mask.tolist() == [[True] * 4, [True, False, True, True], [False] * 4]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1], [1, 1, 2, 2], [1, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_without_eos_as_label_only_the_text_counts() -> None:
    batch = without_label(packed([[10, 11, 12, 13], [20]], 4), EOS)
    assert batch.labels[batch.loss_mask].tolist() == [10, 11, 12, 13, 20]


def example(prompt: list[int], response: list[int]) -> Example:
    return Example(np.array([BOS, *prompt, *response, EOS], np.int32), 1 + len(prompt))


EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(3, 258), max_size=5), st.lists(st.integers(3, 258), max_size=5)), min_size=1, max_size=20
)


@hypothesis.given(EXAMPLES, st.integers(12, 30), st.one_of(st.none(), st.integers(0, 5)))
def test_examples_are_whole_and_each_appears_once(pairs: list[tuple[list[int], list[int]]], length: int, seed: int | None) -> None:
    rows = PackedExamples([example(*pair) for pair in pairs], TOKENIZER, length, seed)
    batch = stack([rows[index] for index in range(len(rows))])
    seen = [(batch.tokens[row, places].tolist(), batch.labels[row, places].tolist()) for row, places in segments(batch)]
    expected = [([BOS, *prompt, *response, EOS], [*prompt, *response, EOS, PAD]) for prompt, response in pairs]
    assert sorted(seen) == sorted(expected)


@hypothesis.given(EXAMPLES, st.integers(12, 30))
def test_the_loss_counts_on_responses_and_their_eos_alone(pairs: list[tuple[list[int], list[int]]], length: int) -> None:
    rows = PackedExamples([example(*pair) for pair in pairs], TOKENIZER, length, None)
    batch = stack([rows[index] for index in range(len(rows))])
    learned = [batch.labels[row, places[batch.loss_mask[row, places]]].tolist() for row, places in segments(batch)]
    assert sorted(learned) == sorted([*response, EOS] for _, response in pairs)
    assert not batch.loss_mask[(batch.tokens == EOS) | (batch.segment_ids == 0)].any()


def test_pairs_are_right_padded_with_the_same_prompt() -> None:
    batch = stack([PairRows([(example([10, 11], [20]), example([10, 11], [30, 31]))], TOKENIZER, 7)[0]])
    assert batch.chosen.tokens.tolist() == [[BOS, 10, 11, 20, EOS, PAD, PAD]]
    assert batch.chosen.loss_mask.tolist() == [[False, False, True, True, False, False, False]]
    assert batch.rejected.labels.tolist() == [[10, 11, 30, 31, EOS, PAD, PAD]]
    assert batch.rejected.loss_mask.tolist() == [[False, False, True, True, True, False, False]]
    assert batch.rejected.segment_ids.tolist() == [[1, 1, 1, 1, 1, 1, 0]]


def test_an_empty_row_is_padding() -> None:
    row = empty_row(3, PAD)
    assert row.segment_ids.tolist() == [0, 0, 0] and not row.loss_mask.any()


@hypothesis.given(st.lists(st.integers(1, 10), min_size=1, max_size=40))
def test_best_fit_places_each_item_once_and_leaves_no_two_rows_that_would_fit_together(sizes: list[int]) -> None:
    rows = best_fit(list(enumerate(sizes)), 10)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    used = sorted(sum(sizes[item] for item in row) for row in rows)
    assert used[-1] <= 10
    assert len(used) == 1 or used[0] + used[1] > 10


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    assert best_fit([(0, 5), (1, 7), (2, 3), (3, 5)], 10) == [[0, 3], [1, 2]]
