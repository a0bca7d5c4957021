"""Auxiliary losses of mixture-of-experts routers, added to any objective."""

import dataclasses

import jax.numpy as jnp

from lmx.core.types import Array, Metrics, Outputs, Terms, Weighted
from lmx.losses import moe


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterLoss:
    """Coefficients of the router's auxiliary losses; models without experts have no router and no such terms.

    Attributes:
      balance: coefficient of `moe.load_balance_loss` (0.001 in Qwen2-57B-A14B's released config).
      z: coefficient of `moe.router_z_loss`.
      pooled: balance the load over all layers together, rather than layer by layer.
    """

    balance: float = 0.0
    z: float = 0.0
    pooled: bool = True

    def terms(self, outputs: Outputs, segment_ids: Array) -> tuple[Terms, Metrics]:
        """Terms of the non-zero coefficients, and both losses as metrics.

        The losses are products of means and so belong to a microbatch; several are averaged by their number of tokens.

        Args:
          outputs: what the model returned.
          segment_ids: [B, T] int32 of the batch that it read.
        """
        router = outputs.router
        if router is None:
            return {}, {}
        tokens = jnp.sum(segment_ids > 0).astype(jnp.float32)  # router.tokens, but visibly of the batch's mask alone
        balance = moe.load_balance_loss(router.selected, router.probs, tokens, pooled=self.pooled)
        z = moe.router_z_loss(router.logsumexp_squared, tokens)
        metrics = {"router_balance": Weighted(balance * tokens, tokens), "router_z": Weighted(z * tokens, tokens)}
        coefficients = {"router_balance": self.balance, "router_z": self.z}
        return {name: (coefficients[name], metric) for name, metric in metrics.items() if coefficients[name]}, metrics


NO_ROUTER_LOSS = RouterLoss()
