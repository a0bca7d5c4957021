import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Outputs
from lmx.losses import likelihood
from lmx.objectives import language_model


def test_the_loss_is_the_mean_cross_entropy_over_the_loss_mask(apply, make_params, make_batch, loss_of):
    params, batch = make_params(), make_batch()
    loss, metrics = loss_of(language_model(apply))(params, {}, batch)
    logits = params["table"][batch.tokens] @ params["head"].T
    dense = likelihood.cross_entropy(logits, labels=batch.labels)[batch.loss_mask].mean()
    hits = (logits.argmax(-1) == batch.labels)[batch.loss_mask].mean()
    np.testing.assert_allclose([loss, metrics["nll"], metrics["accuracy"]], [dense, dense, hits], rtol=1e-6)


def test_z_loss_is_in_the_loss_but_not_in_the_reported_nll(apply, make_params, make_batch, loss_of):
    params, batch = make_params(), make_batch()
    loss, metrics = loss_of(language_model(apply, z_loss=0.1))(params, {}, batch)
    plain, _ = loss_of(language_model(apply))(params, {}, batch)
    squared = jax.nn.logsumexp(params["table"][batch.tokens] @ params["head"].T, axis=-1) ** 2
    assert metrics["nll"] == pytest.approx(float(plain), rel=1e-6)
    assert loss == pytest.approx(float(plain + 0.1 * squared[batch.loss_mask].mean()), rel=1e-5)


def test_tokens_outside_the_mask_change_neither_loss_nor_gradient(apply, make_params, make_batch, scramble, loss_of):
    loss = jax.value_and_grad(loss_of(language_model(apply, z_loss=0.1)), has_aux=True)
    params, batch = make_params(), make_batch()
    jax.tree.map(np.testing.assert_array_equal, loss(params, {}, batch), loss(params, {}, scramble(batch)))


def test_nan_outside_the_mask_changes_neither_loss_nor_gradient(make_params, make_batch, loss_of):
    params, batch = make_params(), make_batch()

    def poisoned(value):
        def apply(params, batch):
            from_table = params["table"][batch.tokens]
            hidden = jnp.where(batch.loss_mask[..., None], from_table, value)
            return Outputs(hidden, params["head"])

        return jax.value_and_grad(loss_of(language_model(apply)), has_aux=True)(params, {}, batch)

    jax.tree.map(np.testing.assert_array_equal, poisoned(jnp.nan), poisoned(0.0))


def test_a_batch_without_loss_tokens_has_loss_zero_and_zero_gradient(apply, make_params, make_batch, loss_of):
    batch = make_batch(lengths=(1, 1, 1))
    (loss, _), grads = jax.value_and_grad(loss_of(language_model(apply)), has_aux=True)(make_params(), {}, batch)
    assert loss == 0
    assert not any(grad.any() for grad in jax.tree.leaves(grads))
