"""Auxiliary losses of mixture-of-experts routers, from sums over tokens."""

import chex
import jax
import jax.numpy as jnp

from lmx.core.types import Array


def load_balance_loss(selected: Array, probs: Array, tokens: Array, *, pooled: bool) -> Array:
    """E times the dot product of the experts' share of slots and their mean router probability.

    With k experts a token, uniform routing gives k, and all tokens on the same k experts with equal mass on them gives E.

    Args:
      selected: [L, E] float32, (token, slot) pairs sent to each expert; a count, so no gradient flows.
      probs: [L, E] float32, sum over tokens of the router's softmax.
      tokens: [] float32, number of tokens in the sums.
      pooled: take shares over the tokens of all layers together (Qwen2-MoE), rather than layer by layer and then the mean (Switch);
        layers that favour different experts look balanced when pooled.

    Returns:
      [] float32; 0 when there are no tokens.

    Reference: Fedus et al. (2021), arXiv:2101.03961, Eqs. 4-6, with k slots a token instead of one.
    """
    chex.assert_equal_shape([selected, probs])
    chex.assert_rank([selected, probs, tokens], [2, 2, 0])
    safe_tokens = jnp.maximum(tokens, 1)
    shares = jax.lax.stop_gradient(selected) / safe_tokens  # [L, E]
    means = probs / safe_tokens  # [L, E]
    if pooled:
        shares, means = jnp.mean(shares, 0, keepdims=True), jnp.mean(means, 0, keepdims=True)
    num_experts = selected.shape[1]
    return num_experts * jnp.mean(jnp.sum(shares * means, axis=1))


def router_z_loss(logsumexp_squared: Array, tokens: Array) -> Array:
    """Mean over tokens and layers of the squared log-sum-exp of the router's logits.

    Args:
      logsumexp_squared: [L] float32, sums over tokens.
      tokens: [] float32, number of tokens in the sums.

    Returns:
      [] float32; 0 when there are no tokens.

    Reference: Zoph et al. (2022), arXiv:2202.08906, Eq. 5.
    """
    chex.assert_rank([logsumexp_squared, tokens], [1, 0])
    return jnp.mean(logsumexp_squared) / jnp.maximum(tokens, 1)
