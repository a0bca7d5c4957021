"""Objectives on what was stored of a teacher, against those with the teacher at hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.data.batches import TeacherBatch, teacher_batch_spec
from lmx.losses import stored_teacher
from lmx.objectives import distillation, language_model, stored, stored_distillation, top1_distillation


@pytest.fixture
def make_stored(make_batch):
    """`make_stored(teacher, k=..., temperature=...)`: a batch with the teacher's top k."""

    def make(teacher, *, k, temperature=1.0):
        text = make_batch()
        logits = teacher["table"][text.tokens] @ teacher["head"].T
        kept = stored_teacher.top_logprobs(logits, k=k, temperature=temperature)
        return TeacherBatch(text=text, ids=kept["ids"], values=kept["logprobs"], tail=kept["tail"])

    return make


def value_and_grad(loss, *args):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(*args)


@pytest.mark.parametrize("loss", [stored.tail_bucket, stored.renormalised])
def test_a_whole_stored_vocabulary_is_distillation_from_the_teacher(loss, apply, make_params, make_batch, make_stored, loss_of):
    params, teacher = make_params(), make_params(1, dim=9)
    offline = stored_distillation(apply, loss=partial(loss, temperature=2.0), alpha=0.3)
    online = distillation(apply, apply, alpha=0.3, temperature=2.0)
    (found, metrics), grads = value_and_grad(loss_of(offline), params, {}, make_stored(teacher, k=7, temperature=2.0))
    (expected, parts), expected_grads = value_and_grad(loss_of(online), params, {"teacher": teacher}, make_batch())
    np.testing.assert_allclose([found, metrics["teacher_loss"]], [expected, parts["kl"]], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, expected_grads)


def test_one_stored_id_is_enough_for_the_top1_mix(apply, make_params, make_batch, make_stored, loss_of):
    params, teacher = make_params(), make_params(1, dim=9)
    offline = stored_distillation(apply, loss=stored.first_choice, alpha=0.9)
    found, grads = value_and_grad(loss_of(offline), params, {}, make_stored(teacher, k=1))
    expected, expected_grads = value_and_grad(
        loss_of(top1_distillation(apply, apply, weight=0.9)), params, {"teacher": teacher}, make_batch()
    )
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, expected_grads)


@pytest.mark.parametrize("loss", [stored.tail_bucket, stored.first_choice, stored.drawn])
def test_without_the_teacher_it_is_language_modelling_to_the_bit(loss, apply, make_params, make_batch, make_stored, loss_of):
    params = make_params()
    found, _ = loss_of(stored_distillation(apply, loss=loss, alpha=0.0))(params, {}, make_stored(make_params(1), k=3))
    expected, _ = loss_of(language_model(apply))(params, {}, make_batch())
    assert found == expected


def test_tokens_outside_the_mask_change_nothing_whatever_is_stored_there(apply, make_params, make_stored, loss_of):
    params, batch = make_params(), make_stored(make_params(1), k=3)
    mask = batch.text.loss_mask
    bad = TeacherBatch(
        text=batch.text,
        ids=jnp.where(mask[..., None], batch.ids, 0),
        values=jnp.where(mask[..., None], batch.values, jnp.nan),
        tail=jnp.where(mask, batch.tail, jnp.nan),
    )
    loss = loss_of(stored_distillation(apply, loss=stored.tail_bucket))
    jax.tree.map(np.testing.assert_array_equal, value_and_grad(loss, params, {}, batch), value_and_grad(loss, params, {}, bad))


def test_the_abstract_batch_has_the_shapes_of_a_real_one(make_params, make_stored):
    batch = make_stored(make_params(1), k=3)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), teacher_batch_spec(*batch.text.tokens.shape, 3))


def test_a_share_above_one_is_refused(apply):
    with pytest.raises(ValueError, match="alpha=1.5"):
        stored_distillation(apply, loss=stored.drawn, alpha=1.5)
