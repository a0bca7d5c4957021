"""Dropless mixture of experts on arrays: tokens sorted by expert, one grouped product a projection."""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from lmx.core.types import Array
from lmx.kernels.grouped_matmul.api import grouped_matmul
from lmx.model.activation import gated

ExpertsFn = Callable[..., Array]  # the signature of `dropless_experts`


def dropless_experts(
    x: Array,
    gate: Array,
    up: Array,
    down: Array,
    expert_ids: Array,
    weights: Array,
    *,
    activation: Callable[[Array], Array],
) -> Array:
    """Weighted sum of each token's k experts; no token is ever dropped, and no token sees another.

    A shard of tokens can be computed alone. Logical axes, for a wrapper that runs this under `shard_map`:
    x and the result ("batch", "length", "activation_embed"); gate and up ("experts", "embed", "ffn"); down
    ("experts", "ffn", "embed"); expert_ids and weights ("batch", "length", None). Each shard needs all E experts
    and the whole D; where F is sharded, every shard returns a partial sum, to be added over that mesh axis.

    Args:
      x: [B, T, D].
      gate: [E, D, F], of x's dtype.
      up: [E, D, F], of x's dtype.
      down: [E, F, D], of x's dtype.
      expert_ids: [B, T, k] int32, distinct experts of each token.
      weights: [B, T, k], of x's dtype.
      activation: elementwise function of the gate.

    Returns:
      [B, T, D] in x's dtype.

    Reference: Gale et al. (2022), arXiv:2211.15841 (dropless MoE); here with sorted rows and `jax.lax.ragged_dot`.
    """
    chex.assert_rank([x, gate, up, down, expert_ids, weights], 3)
    chex.assert_equal_shape([expert_ids, weights])
    num_experts, model_dim = gate.shape[:2]
    slots = expert_ids.shape[-1]
    flat_ids = expert_ids.reshape(-1)  # [M k], M = B T
    order = jnp.argsort(flat_ids)
    group_sizes = jnp.bincount(flat_ids, length=num_experts).astype(jnp.int32)  # [E]
    rows = x.reshape(-1, model_dim)[order // slots]  # [M k, D], sorted by expert
    hidden = gated(grouped_matmul(rows, gate, group_sizes), grouped_matmul(rows, up, group_sizes), activation)
    outputs = grouped_matmul(hidden, down, group_sizes)  # [M k, D]
    unsorted = outputs[jnp.argsort(order)].reshape(*expert_ids.shape, model_dim)  # [B, T, k, D]
    return jnp.einsum("BTkD,BTk->BTD", unsorted, weights)
