import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.data.batches import PreferenceBatch
from lmx.losses.preference import dpo_loss
from lmx.objectives import language_model, preference, sequence_logprobs

DPO = partial(dpo_loss, beta=0.1)


def test_at_the_reference_dpo_is_log2_with_even_accuracy(apply, make_params, make_pairs, loss_of):
    params = make_params()
    loss, metrics = loss_of(preference(apply, apply, loss=DPO))(params, {"reference": params}, make_pairs())
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == 0 and metrics["chosen_reward"] == 0


def test_logprobs_are_sums_over_response_tokens(apply, make_params, make_pairs, loss_of):
    params, reference, pairs = make_params(), make_params(1, dim=9), make_pairs()
    loss, metrics = loss_of(preference(apply, apply, loss=DPO))(params, {"reference": reference}, pairs)

    def logprobs(params, batch):
        every = jax.nn.log_softmax(params["table"][batch.tokens] @ params["head"].T)
        labels = jnp.take_along_axis(every, batch.labels[..., None], -1)[..., 0]
        return jnp.sum(labels * batch.loss_mask, axis=1)

    chosen, rejected = (logprobs(params, b) - logprobs(reference, b) for b in (pairs.chosen, pairs.rejected))
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-0.1 * (chosen - rejected)))), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], np.mean(chosen - rejected), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(chosen > rejected))
    np.testing.assert_allclose(metrics["chosen_logprob"], np.mean(logprobs(params, pairs.chosen)), rtol=1e-5)


def test_one_forward_pass_serves_both_responses(apply, make_params, make_pairs, loss_of):
    seen = []

    def counted(params, batch):
        seen.append(batch.tokens.shape)
        return apply(params, batch)

    loss_of(preference(counted, apply, loss=DPO))(make_params(), {"reference": make_params()}, make_pairs())
    assert seen == [(6, 8)]


def test_any_pure_loss_plugs_in(apply, make_params, make_pairs, loss_of):
    def hinge(*, policy_chosen, policy_rejected, reference_chosen, reference_rejected):
        return jnp.maximum(0, 1 - (policy_chosen - policy_rejected - reference_chosen + reference_rejected))

    params = make_params()
    loss, _ = loss_of(preference(apply, apply, loss=hinge))(params, {"reference": params}, make_pairs())
    assert loss == pytest.approx(1.0)


def test_pairs_with_an_empty_response_do_not_count(apply, make_params, make_pairs, loss_of):
    pairs = make_pairs()
    emptied = dataclasses.replace(pairs.rejected, loss_mask=pairs.rejected.loss_mask.at[2].set(False))
    two = jax.tree.map(lambda x: x[:2], pairs)
    args = make_params(), {"reference": make_params(1)}
    loss = jax.value_and_grad(loss_of(preference(apply, apply, loss=DPO)), has_aux=True)
    padded, dropped = loss(*args, PreferenceBatch(pairs.chosen, emptied)), loss(*args, two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), padded, dropped)


def test_tokens_outside_the_mask_change_nothing(apply, make_params, make_pairs, scramble, loss_of):
    loss = jax.value_and_grad(loss_of(preference(apply, apply, loss=DPO)), has_aux=True)
    args, pairs = (make_params(), {"reference": make_params(1)}), make_pairs()
    changed = PreferenceBatch(scramble(pairs.chosen), scramble(pairs.rejected))
    jax.tree.map(np.testing.assert_array_equal, loss(*args, pairs), loss(*args, changed))


def test_no_gradient_reaches_the_reference(apply, make_params, make_pairs, loss_of):
    loss = loss_of(preference(apply, apply, loss=DPO))
    grads, _ = jax.grad(loss, argnums=1, has_aux=True)(make_params(), {"reference": make_params(1)}, make_pairs())
    assert not any(grad.any() for grad in jax.tree.leaves(grads))


def test_the_gradient_raises_the_chosen_response(apply, make_params, make_pairs, loss_of):
    params, pairs = make_params(), make_pairs()
    grads, _ = jax.grad(loss_of(preference(apply, apply, loss=DPO)), has_aux=True)(params, {"reference": params}, pairs)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    margin = lambda p: sum(  # noqa: E731
        sign * sequence_logprobs(apply(p, b), b).sum() for sign, b in ((1, pairs.chosen), (-1, pairs.rejected))
    )
    assert margin(moved) > margin(params)


def test_the_chosen_responses_cross_entropy_is_a_term_with_its_own_denominator(apply, make_params, make_pairs, loss_of):
    params, pairs = make_params(), make_pairs()
    plain, with_nll = (
        loss_of(preference(apply, apply, loss=DPO, nll_weight=weight))(params, {"reference": params}, pairs)[0]
        for weight in (0.0, 0.2)
    )
    nll, _ = loss_of(language_model(apply))(params, {}, pairs.chosen)
    assert with_nll == pytest.approx(float(plain + 0.2 * nll), rel=1e-6)
