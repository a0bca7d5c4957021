import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.losses.moe import load_balance_loss, router_z_loss

LAYERS, EXPERTS, SLOTS, TOKENS = 2, 8, 2, 16.0


def uniform() -> jax.Array:
    return jnp.full((LAYERS, EXPERTS), TOKENS / EXPERTS)


@pytest.mark.parametrize("pooled", [True, False])
def test_uniform_routing_gives_the_number_of_slots(pooled):
    assert load_balance_loss(SLOTS * uniform(), uniform(), jnp.array(TOKENS), pooled=pooled) == pytest.approx(SLOTS)


@pytest.mark.parametrize("pooled", [True, False])
def test_all_tokens_on_the_same_experts_give_the_number_of_experts(pooled):
    same = jnp.zeros((LAYERS, EXPERTS)).at[:, :SLOTS].set(TOKENS)
    assert load_balance_loss(same, same / SLOTS, jnp.array(TOKENS), pooled=pooled) == pytest.approx(EXPERTS)


def test_layers_that_favour_different_experts_look_balanced_only_when_pooled():
    selected = jnp.zeros((2, 2)).at[0, 0].set(TOKENS).at[1, 1].set(TOKENS)  # one slot; each layer uses one of two experts
    assert load_balance_loss(selected, selected, jnp.array(TOKENS), pooled=True) == pytest.approx(1.0)
    assert load_balance_loss(selected, selected, jnp.array(TOKENS), pooled=False) == pytest.approx(2.0)


def test_the_pooled_loss_equals_that_of_hugging_face_on_single_tokens():
    """`E * sum over slots and experts of f * P` with f, P means over the tokens of all layers together."""
    logits = np.random.default_rng(0).normal(size=(LAYERS, 5, EXPERTS))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.eye(EXPERTS)[np.argsort(-probs, -1)[..., :SLOTS]]  # [L, tokens, k, E]
    f, p = chosen.reshape(-1, SLOTS, EXPERTS).mean(0), probs.reshape(-1, EXPERTS).mean(0)
    loss = load_balance_loss(jnp.asarray(chosen.sum((1, 2))), jnp.asarray(probs.sum(1)), jnp.array(5.0), pooled=True)
    assert loss == pytest.approx(EXPERTS * np.sum(f * p), rel=1e-6)


def test_gradient_flows_through_the_probabilities_alone():
    selected, probs = jnp.arange(16.0).reshape(2, 8), uniform()
    counts, means = jax.grad(lambda s, p: load_balance_loss(s, p, jnp.array(TOKENS), pooled=False), argnums=(0, 1))(selected, probs)
    np.testing.assert_array_equal(counts, np.zeros((2, 8)))
    np.testing.assert_allclose(means, EXPERTS * selected / TOKENS**2 / LAYERS, rtol=1e-6)


def test_gradients_equal_finite_differences(check_gradient):
    rng = np.random.default_rng(0)
    selected, probs = rng.uniform(1, 2, (2, LAYERS, EXPERTS))
    for pooled in (True, False):
        check_gradient(lambda p, pooled=pooled: load_balance_loss(selected, p, np.array(TOKENS), pooled=pooled), probs)


def test_without_tokens_both_losses_are_zero_with_zero_gradient():
    nothing = jnp.zeros((LAYERS, EXPERTS))
    value, grad = jax.value_and_grad(lambda p: load_balance_loss(nothing, p, jnp.array(0.0), pooled=True))(nothing)
    assert value == 0 and not grad.any()
    assert router_z_loss(jnp.zeros(LAYERS), jnp.array(0.0)) == 0


def test_router_z_loss_is_the_mean_over_tokens_and_layers():
    assert router_z_loss(jnp.array([8.0, 24.0]), jnp.array(4.0)) == pytest.approx(4.0)
