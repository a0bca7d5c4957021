"""Mixture of experts: router, routed experts and the shared expert behind its gate."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.core.types import Array, RouterStatistics
from lmx.model.config import MoEConfig
from lmx.model.execution import Execution
from lmx.model.ffn import FFN
from lmx.model.linear import Linear, normal_init

LayerRouting = tuple[Array, Array, Array]  # one layer's selected [E], probs [E] and logsumexp_squared []


class MoE(nn.Module):
    """`sum_j p_j expert_j(x) + sigmoid(x w) shared(x)` over the k most probable experts of each token.

    The router's softmax runs over all E in float32; with `normalize_weights` the k kept weights are divided by their sum.

    Attributes:
      config: experts and shared expert.
      model_dim: D.
      execution: how to run.
      init_std: standard deviation at init, None = fan-in.

    Reference: Yang et al. (2024), arXiv:2407.10671, Eqs. 1-3 (Qwen2-57B-A14B); the shared gate is that of the released code.
    """

    config: MoEConfig
    model_dim: int
    execution: Execution
    init_std: float | None = None

    @nn.compact
    def __call__(self, x: Array, segment_ids: Array) -> tuple[Array, LayerRouting]:
        """[B, T, D] activations and the router's statistics over the tokens with a segment."""
        config, precision = self.config, self.execution.precision
        router = Linear((self.model_dim,), (config.num_experts,), ("embed", "experts"), precision, self.init_std, name="router")
        logits = router(x.astype(jnp.float32))  # [B, T, E]
        probs = jax.nn.softmax(logits, axis=-1)
        weights, expert_ids = jax.lax.top_k(probs, config.experts_per_token)  # [B, T, k]
        routing = layer_routing(logits, probs, expert_ids, segment_ids > 0)
        if config.normalize_weights:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        experts = ExpertWeights(config, self.model_dim, self.execution, self.init_std, name="experts")()
        y = self.execution.experts(x, *experts, expert_ids, weights.astype(x.dtype), activation=config.expert.activation)
        if config.shared is not None:
            shared = FFN(config.shared, self.model_dim, self.execution, self.init_std, name="shared")(x)
            gate = Linear((self.model_dim,), (1,), ("embed", None), precision, self.init_std, name="shared_gate")(x)  # [B, T, 1]
            y = y + jax.nn.sigmoid(gate) * shared
        return y, routing


class ExpertWeights(nn.Module):
    """Kernels of all routed experts of a layer.

    Attributes:
      config: experts.
      model_dim: D.
      execution: how to run.
      init_std: standard deviation at init, None = fan-in.
    """

    config: MoEConfig
    model_dim: int
    execution: Execution
    init_std: float | None = None

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """gate [E, D, F], up [E, D, F] and down [E, F, D] in the activation dtype."""
        num_experts, ffn_dim = self.config.num_experts, self.config.expert.ffn_dim
        wide = normal_init(self.model_dim, self.init_std, ("experts", "embed", "ffn"))
        narrow = normal_init(ffn_dim, self.init_std, ("experts", "ffn", "embed"))
        params, dtype = self.execution.precision.params, self.execution.precision.activations
        gate = self.param("gate", wide, (num_experts, self.model_dim, ffn_dim), params)
        up = self.param("up", wide, (num_experts, self.model_dim, ffn_dim), params)
        down = self.param("down", narrow, (num_experts, ffn_dim, self.model_dim), params)
        return gate.astype(dtype), up.astype(dtype), down.astype(dtype)


def layer_routing(logits: Array, probs: Array, expert_ids: Array, valid: Array) -> LayerRouting:
    """Sums over the valid tokens, as `RouterStatistics` defines them for one layer.

    Args:
      logits: [B, T, E] float32.
      probs: [B, T, E] float32.
      expert_ids: [B, T, k] int32.
      valid: [B, T] bool.

    Returns:
      selected [E], probs [E], logsumexp_squared [], all float32.
    """
    mask = valid.astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(expert_ids, logits.shape[-1]), axis=2)  # [B, T, E]
    squared = jax.nn.logsumexp(logits, axis=-1) ** 2  # [B, T]
    return jnp.einsum("BTE,BT->E", chosen, mask), jnp.einsum("BTE,BT->E", probs, mask), jnp.sum(squared * mask)


def router_statistics(routings: list[LayerRouting], segment_ids: Array) -> RouterStatistics | None:
    """Statistics of the MoE layers in the order of depth; None for a dense model.

    Args:
      routings: for each MoE block of the pattern, its statistics stacked over the R repeats.
      segment_ids: [B, T] int32.
    """
    if not routings:
        return None
    # Layer r * P + p is repeat r of place p: the place varies fastest.
    stacked = [jnp.stack(parts, axis=1) for parts in zip(*routings, strict=True)]  # [R, P, ...]
    selected, probs, squared = [part.reshape(-1, *part.shape[2:]) for part in stacked]
    return RouterStatistics(selected, probs, squared, jnp.sum(segment_ids > 0).astype(jnp.float32))
