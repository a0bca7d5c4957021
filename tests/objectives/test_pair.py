import numpy as np

from lmx.data.batches import PreferenceBatch
from lmx.objectives import pair


def test_interleaved_rows_separate_again(make_pairs):
    pairs = make_pairs()
    both = pair.interleave(pairs)
    assert both.tokens.shape == (6, 8)
    chosen, rejected = pair.separate(both.tokens[:, 0])
    np.testing.assert_array_equal(chosen, pairs.chosen.tokens[:, 0])
    np.testing.assert_array_equal(rejected, pairs.rejected.tokens[:, 0])


def test_a_pair_counts_only_if_both_responses_have_tokens(make_batch):
    empty = make_batch(lengths=(6, 1, 1), prompts=(2, 1, 1))
    other = make_batch(lengths=(6, 3, 1), prompts=(2, 1, 1))
    np.testing.assert_array_equal(pair.counts(PreferenceBatch(other, empty)), [True, False, False])
