import jax
import numpy as np
import pytest

from lmx.kernels import head
from lmx.losses import divergence, likelihood
from lmx.objectives import distillation, language_model, top1_distillation
from lmx.objectives.distillation import LARGE_VOCABULARY


@pytest.mark.parametrize("make", [lambda a: distillation(a, a, alpha=0.0), lambda a: top1_distillation(a, a, weight=0.0)])
def test_without_the_teacher_it_is_language_modelling(make, apply, make_params, make_batch, loss_of):
    params, batch, frozen = make_params(), make_batch(), {"teacher": make_params(1)}
    (loss, _), grads = jax.value_and_grad(loss_of(make(apply)), has_aux=True)(params, frozen, batch)
    (expected, _), expected_grads = jax.value_and_grad(loss_of(language_model(apply)), has_aux=True)(params, {}, batch)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected_grads)


def test_hard_and_soft_parts_are_mixed_by_alpha(apply, make_params, make_batch, loss_of):
    params, teacher, batch = make_params(), make_params(1, dim=9), make_batch()
    objective = distillation(apply, apply, alpha=0.3, temperature=2.0)
    loss, metrics = loss_of(objective)(params, {"teacher": teacher}, batch)
    student_logits, teacher_logits = (p["table"][batch.tokens] @ p["head"].T for p in (params, teacher))
    soft = divergence.forward_kl(teacher_logits, student_logits, temperature=2.0)[batch.loss_mask].mean()
    hard = likelihood.cross_entropy(student_logits, labels=batch.labels)[batch.loss_mask].mean()
    np.testing.assert_allclose([loss, metrics["kl"], metrics["nll"]], [0.7 * hard + 0.3 * soft, soft, hard], rtol=1e-5)


def test_top1_takes_the_teachers_choice_and_the_label(apply, make_params, make_batch, loss_of):
    params, teacher, batch = make_params(), make_params(1, dim=9), make_batch()
    loss, metrics = loss_of(top1_distillation(apply, apply, weight=0.9))(params, {"teacher": teacher}, batch)
    student_logits, teacher_logits = (p["table"][batch.tokens] @ p["head"].T for p in (params, teacher))
    per_token = divergence.top1_mix(teacher_logits, student_logits, labels=batch.labels, weight=0.9)
    np.testing.assert_allclose([loss, metrics["top1_mix"]], per_token[batch.loss_mask].mean(), rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient(apply, make_params, make_batch, loss_of):
    params = make_params()
    objective = distillation(apply, apply, alpha=1.0, temperature=2.0)
    (loss, _), grads = jax.value_and_grad(loss_of(objective), has_aux=True)(params, {"teacher": params}, make_batch())
    assert loss == pytest.approx(0.0, abs=1e-6)
    jax.tree.map(lambda grad: np.testing.assert_allclose(grad, 0.0, atol=1e-6), grads)


@pytest.mark.parametrize("make", [distillation, top1_distillation])
def test_no_gradient_reaches_the_teacher(make, apply, make_params, make_batch, loss_of):
    frozen = {"teacher": make_params(1)}
    grads, _ = jax.grad(loss_of(make(apply, apply)), argnums=1, has_aux=True)(make_params(), frozen, make_batch())
    assert not any(grad.any() for grad in jax.tree.leaves(grads))


def test_tokens_outside_the_mask_change_nothing(apply, make_params, make_batch, scramble, loss_of):
    loss = jax.value_and_grad(loss_of(distillation(apply, apply, alpha=0.5)), has_aux=True)
    params, frozen, batch = make_params(), {"teacher": make_params(1)}, make_batch()
    jax.tree.map(np.testing.assert_array_equal, loss(params, frozen, batch), loss(params, frozen, scramble(batch)))


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes(apply, make_params, make_batch, loss_of):
    with pytest.raises(ValueError, match="student's head has 7 rows and the teacher's 9"):
        loss_of(distillation(apply, apply))(make_params(), {"teacher": make_params(1, vocab=9)}, make_batch())


def test_a_share_above_one_is_refused(apply):
    with pytest.raises(ValueError, match="alpha=1.5"):
        distillation(apply, apply, alpha=1.5)


def test_blocks_of_the_vocabulary_give_the_same_loss_gradient_and_metrics(apply, make_params, make_batch, loss_of):
    params, frozen, batch = make_params(), {"teacher": make_params(1, dim=9)}, make_batch()
    whole, blocked = (
        jax.value_and_grad(loss_of(distillation(apply, apply, alpha=0.3, temperature=2.0, vocabulary_blocks=blocks)), has_aux=True)(
            params, frozen, batch
        )
        for blocks in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), blocked, whole)


def test_a_large_vocabulary_is_cut_into_blocks_unasked(apply, make_params, make_batch, loss_of, monkeypatch):
    asked = []
    blocked = head.distillation_loss_sum
    monkeypatch.setattr(head, "distillation_loss_sum", lambda *outputs, **options: asked.append(1) or blocked(*outputs, **options))
    for rows in (LARGE_VOCABULARY - 1, LARGE_VOCABULARY):
        params = make_params(rows=rows)
        jax.eval_shape(loss_of(distillation(apply, apply)), params, {"teacher": params}, make_batch())
    assert len(asked) == 1
