"""Mixture of experts: dropless dispatch, weights, shared expert and router statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model.activation import silu
from lmx.model.config import FFNConfig, MoEConfig
from lmx.model.execution import Execution
from lmx.model.experts import dropless_experts
from lmx.model.moe import MoE

B, T, D, E, F, SLOTS = 2, 7, 8, 5, 6, 2
X = jax.random.normal(jax.random.key(0), (B, T, D))
GATE, UP = jax.random.normal(jax.random.key(1), (2, E, D, F))
DOWN = jax.random.normal(jax.random.key(2), (E, F, D))
WEIGHTS = jax.random.uniform(jax.random.key(3), (B, T, SLOTS))


def _dense(x, gate, up, down, ids, weights):
    """Every expert on every token, then the chosen ones picked."""
    hidden = silu(jnp.einsum("BTD,EDF->BTEF", x, gate)) * jnp.einsum("BTD,EDF->BTEF", x, up)
    outputs = jnp.einsum("BTEF,EFD->BTED", hidden, down)
    picked = jnp.take_along_axis(outputs, ids[..., None], axis=2)
    return jnp.sum(picked * weights[..., None], axis=2)


def _ids(kind):
    if kind == "random":
        return jax.lax.top_k(jax.random.normal(jax.random.key(4), (B, T, E)), SLOTS)[1]
    return jnp.broadcast_to(jnp.array([3, 1]), (B, T, SLOTS))  # all tokens on the same two: the others get no rows


@pytest.mark.parametrize("kind", ["random", "two experts"])
def test_dispatch_equals_the_dense_mixture_forward_and_backward(kind):
    def objective(mixture):
        return jax.value_and_grad(lambda *a: jnp.sum(mixture(*a[:4], _ids(kind), a[4]) ** 2), argnums=(0, 1, 2, 3, 4))

    arrays = (X, GATE, UP, DOWN, WEIGHTS)
    value, grads = objective(lambda *a: dropless_experts(*a, activation=silu))(*arrays)
    expected, expected_grads = objective(_dense)(*arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-4)


def _layer(*, normalize=False, shared=True, segment_ids=None, edit=None):
    ffn = FFNConfig(ffn_dim=F, activation=silu)
    config = MoEConfig(
        num_experts=E, experts_per_token=SLOTS, expert=ffn, shared=ffn if shared else None, normalize_weights=normalize
    )
    layer = MoE(config, D, Execution())
    segment_ids = jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids
    boxes = layer.init(jax.random.key(5), X, segment_ids)["params"]
    params = jax.tree.map(lambda box: box.value, boxes, is_leaf=lambda box: hasattr(box, "value"))
    params = params if edit is None else edit(params)
    return params, *layer.apply({"params": params}, X, segment_ids)


@pytest.mark.parametrize("normalize", [False, True])
def test_layer_weights_its_experts_by_the_softmax_over_all(normalize):
    params, y, _ = _layer(normalize=normalize, shared=False)
    probs, ids = jax.lax.top_k(jax.nn.softmax(X @ params["router"]["kernel"]), SLOTS)
    weights = probs / probs.sum(-1, keepdims=True) if normalize else probs
    experts = params["experts"]
    expected = _dense(X, experts["gate"], experts["up"], experts["down"], ids, weights)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_zero_shared_gate_gives_half_of_the_shared_expert():
    def closed(params):
        return params | {"shared_gate": {"kernel": jnp.zeros((D, 1))}}

    params, y, _ = _layer(edit=closed)
    _, routed, _ = _layer(shared=False, edit=lambda _: {n: params[n] for n in ("router", "experts")})
    kernels = {name: params["shared"][name]["kernel"] for name in ("gate", "up", "down")}
    shared = (silu(X @ kernels["gate"]) * (X @ kernels["up"])) @ kernels["down"]
    np.testing.assert_allclose(y - routed, 0.5 * shared, atol=1e-5)


def test_statistics_are_sums_over_valid_tokens_alone():
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    valid = np.asarray(segment_ids) > 0
    params, _, (selected, probs, squared) = _layer(segment_ids=segment_ids)
    logits = np.asarray(X, np.float64)[valid] @ np.asarray(params["router"]["kernel"], np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counts = np.bincount(np.argsort(-softmax, axis=-1)[:, :SLOTS].ravel(), minlength=E)
    np.testing.assert_array_equal(selected, counts)
    assert selected.sum() == SLOTS * valid.sum()
    np.testing.assert_allclose(probs, softmax.sum(0), rtol=1e-5)
    np.testing.assert_allclose(squared, (np.log(np.exp(logits).sum(-1)) ** 2).sum(), rtol=1e-5)


def test_a_zero_router_spreads_probability_evenly():
    _, _, (_, probs, squared) = _layer(edit=lambda params: params | {"router": {"kernel": jnp.zeros((D, E))}})
    np.testing.assert_allclose(probs, B * T / E, rtol=1e-6)
    np.testing.assert_allclose(squared, B * T * np.log(E) ** 2, rtol=1e-5)


def test_padding_does_not_change_the_other_tokens():
    segment_ids = jnp.array([[1] * 5 + [0, 0], [1] * T])
    _, y, _ = _layer()
    _, padded, _ = _layer(segment_ids=segment_ids)
    np.testing.assert_array_equal(y[segment_ids > 0], padded[segment_ids > 0])
