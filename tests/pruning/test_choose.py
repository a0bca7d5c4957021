"""What stays: the best of each axis, in groups and patterns."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmx.pruning.choose import choose, choose_heads, choose_layers, highest
from lmx.pruning.scores import weight_scores


def test_the_highest_come_in_ascending_order_and_ties_go_to_the_lower_id():
    np.testing.assert_array_equal(highest(np.array([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 5.0]]), 2), [[1, 2], [0, 3]])


@given(arrays(np.float64, (2, 3, 4), elements=st.floats(0, 9)), arrays(np.float64, (2, 3), elements=st.floats(0, 9)))
def test_query_heads_stay_with_their_kv_head(q_scores, kv_scores):
    queries, keys = choose_heads(q_scores.reshape(2, 12), kv_scores, q_heads=4, kv_heads=2)
    np.testing.assert_array_equal(queries // 4, np.repeat(keys, 2, axis=1))
    for layer in range(2):
        assert kv_scores[layer, keys[layer]].min() >= np.delete(kv_scores[layer], keys[layer]).max()
        for place, key in enumerate(keys[layer]):
            inside = queries[layer, 2 * place : 2 * place + 2] % 4
            assert q_scores[layer, key, inside].sum() == pytest.approx(np.sort(q_scores[layer, key])[-2:].sum())


@given(scores=arrays(np.float64, 8, elements=st.floats(-1, 1)), places=st.sampled_from([1, 2, 4]), repeats=st.integers(1, 2))
def test_layers_are_the_best_choice_that_keeps_the_pattern(scores, places, repeats):
    count = places * repeats
    kept = choose_layers(scores, count, places)
    assert len(kept) == count and np.all(np.diff(kept) > 0) and np.all(kept % places == np.arange(count) % places)
    choices = [c for c in itertools.combinations(range(8), count) if all(c[j] % places == j % places for j in range(count))]
    assert scores[kept].sum() == pytest.approx(max(scores[list(c)].sum() for c in choices))


def test_depth_needs_scores_of_layers(get, resized):
    config, params = get("llama3")
    with pytest.raises(ValueError, match="1 of 3 layers must go, but weights don't tell which"):
        choose(weight_scores(params, config), config, resized(config, num_layers=2))
