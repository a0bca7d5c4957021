import jax
import numpy as np
import pytest

from lmx.losses.reward import bradley_terry_loss
from lmx.objectives import reward, sequence_rewards


def test_the_reward_is_read_at_the_last_token_of_the_response(apply, make_params, make_batch):
    params, batch = make_params(rows=1), make_batch(lengths=(6, 3, 8))
    rewards = sequence_rewards(apply(params, batch), batch)
    last = batch.tokens[np.arange(3), np.array([5, 2, 7])]  # end-of-text stands here; the loss mask ends one place before
    np.testing.assert_allclose(rewards, params["table"][last] @ params["head"][0], rtol=1e-6)
    assert not batch.loss_mask[0, 5] and batch.loss_mask[0, 4]


def test_more_padding_changes_no_reward(apply, make_params, make_batch):
    params, short = make_params(rows=1), make_batch()
    long = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 4))), short)
    np.testing.assert_array_equal(sequence_rewards(apply(params, long), long), sequence_rewards(apply(params, short), short))


def test_a_response_cut_at_the_rows_end_is_read_at_the_last_token_there_is(apply, make_params, make_batch):
    params, batch = make_params(rows=1), make_batch(prompts=(2,), lengths=(9,))
    assert batch.loss_mask[0, -1]
    reward = sequence_rewards(apply(params, batch), batch)
    np.testing.assert_allclose(reward, params["table"][batch.tokens[:, -1]] @ params["head"][0], rtol=1e-6)


def test_a_row_without_response_has_reward_zero(apply, make_params, make_batch):
    batch = make_batch(prompts=(1,), lengths=(1,))
    assert sequence_rewards(apply(make_params(rows=1), batch), batch) == 0


def test_the_objective_is_the_mean_bradley_terry_loss(apply, make_params, make_pairs, loss_of):
    params, pairs = make_params(rows=1), make_pairs()
    loss, metrics = loss_of(reward(apply))(params, {}, pairs)
    chosen, rejected = (sequence_rewards(apply(params, b), b) for b in (pairs.chosen, pairs.rejected))
    np.testing.assert_allclose(loss, bradley_terry_loss(chosen=chosen, rejected=rejected).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(chosen > rejected))
    np.testing.assert_allclose(metrics["margin"], np.mean(chosen - rejected), rtol=1e-5)


def test_a_head_of_zeros_gives_log2_and_even_accuracy(apply, make_params, make_pairs, loss_of):
    params = {**make_params(rows=1), "head": np.zeros((1, 4), np.float32)}
    loss, metrics = loss_of(reward(apply))(params, {}, make_pairs())
    assert loss == pytest.approx(np.log(2)) and metrics["accuracy"] == 0.5


def test_a_head_over_a_vocabulary_is_refused(apply, make_params, make_pairs, loss_of):
    with pytest.raises(ValueError, match="a scalar head of 1 row, but the model.s head has 7"):
        loss_of(reward(apply))(make_params(), {}, make_pairs())
