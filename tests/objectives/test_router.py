import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.losses import moe
from lmx.model.decoder import build_model
from lmx.objectives import RouterLoss, language_model

MODEL = build_model(tiny.qwen2_moe(8, model_dim=16, num_layers=2, head_dim=4, ffn_dim=8, num_experts=4, max_length=16))


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)  # compiling the initialisers of a dozen arrays would take longer than all the rest
    return jax.tree.map(lambda leaf: random.normal(scale=0.3, size=leaf.shape).astype(np.float32), MODEL.abstract_params())


def test_terms_are_the_losses_weighted_by_tokens(params, make_batch):
    batch = make_batch()
    outputs = jax.jit(MODEL.apply)(params, batch)
    terms, metrics = RouterLoss(balance=0.01, z=0.001).terms(outputs, batch.segment_ids)
    tokens = int((batch.segment_ids > 0).sum())
    assert outputs.router.tokens == tokens
    balance = moe.load_balance_loss(outputs.router.selected, outputs.router.probs, outputs.router.tokens, pooled=True)
    np.testing.assert_allclose(terms["router_balance"][1].mean(), balance, rtol=1e-6)
    assert {name: coefficient for name, (coefficient, _) in terms.items()} == {"router_balance": 0.01, "router_z": 0.001}
    assert all(metric.weight == tokens for metric in metrics.values())


def test_losses_without_coefficient_are_only_reported(params, make_batch):
    batch = make_batch()
    terms, metrics = RouterLoss().terms(jax.jit(MODEL.apply)(params, batch), batch.segment_ids)
    assert terms == {} and set(metrics) == {"router_balance", "router_z"}


def test_a_dense_model_has_no_router_terms(apply, make_params, make_batch):
    batch = make_batch()
    assert RouterLoss(balance=1.0).terms(apply(make_params(), batch), batch.segment_ids) == ({}, {})


def test_padding_changes_no_router_term(params, make_batch, loss_of):
    batch = make_batch()
    padded = batch.segment_ids == 0
    changed = dataclasses.replace(batch, tokens=jnp.where(padded, 5, batch.tokens), labels=jnp.where(padded, 3, batch.labels))
    objective = language_model(MODEL.apply, router=RouterLoss(balance=0.1, z=0.1))
    loss = jax.jit(jax.value_and_grad(loss_of(objective), has_aux=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loss(params, {}, batch), loss(params, {}, changed))
