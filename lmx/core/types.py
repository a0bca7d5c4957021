"""The types that every layer shares: arrays, model outputs, weighted sums, precision.

Dimension letters, used throughout lmx: `B` batch, `T` query tokens, `S` key tokens, `D` model, `N` query heads, `K` KV heads,
`G` = N / K, `H` head dim, `F` FFN, `V` vocabulary, `E` experts, `L` layers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Params = Any  # nested dict of arrays


class TokenBatch(Protocol):
    """What a decoder reads of a batch; `lmx.data.batches.LMBatch` is one."""

    @property
    def tokens(self) -> Array:
        """[B, T] int32."""

    @property
    def segment_ids(self) -> Array:
        """[B, T] int32, 0 on padding, documents counted from 1."""

    @property
    def positions(self) -> Array:
        """[B, T] int32, restarting at 0 in each document."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStatistics:
    """Sums over the valid tokens (`segment_ids > 0`) of one batch, layer by layer; all float32.

    Attributes:
      selected: [L, E] number of (token, slot) pairs sent to each expert; sums to `tokens * experts_per_token` in each layer.
      probs: [L, E] sum over tokens of the router's softmax over all experts.
      logsumexp_squared: [L] sum over tokens of the squared log-sum-exp of the router's logits.
      tokens: [] number of valid tokens.
    """

    selected: Array
    probs: Array
    logsumexp_squared: Array
    tokens: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a decoder returns: hidden states and the head that turns them into logits, never the logits themselves.

    `logits = soft_cap(hidden @ head.T)`, computed in chunks by `lmx.kernels.head`.

    Attributes:
      hidden: [B, T, D] activations after the final norm.
      head: [V, D] output table (the embedding itself when tied; [1, D] for a scalar head).
      router: statistics of the MoE routers, or None for a dense model.
      soft_cap: c of `c * tanh(x / c)` on the logits, or None.
    """

    hidden: Array
    head: Array
    router: RouterStatistics | None = None
    soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """A sum and its denominator, kept apart so that means stay exact across microbatches, devices and padding.

    Attributes:
      total: [] float32, the weighted sum.
      weight: [] float32, the sum of weights; it must depend on the batch's masks alone.
    """

    total: Array
    weight: Array

    def mean(self) -> Array:
        """total / weight, and 0 where the weight is 0."""
        safe = jnp.where(self.weight == 0, 1.0, self.weight)
        return jnp.where(self.weight == 0, 0.0, self.total / safe)

    def __add__(self, other: "Weighted") -> "Weighted":
        return Weighted(self.total + other.total, self.weight + other.weight)


Metrics = dict[str, Weighted]
Terms = dict[str, tuple[float, Weighted]]  # name -> (coefficient, sum); the loss is sum of coefficient * total / weight
# (params, frozen, batch, key) -> (terms, metrics); frozen = {"teacher": params, "reference": params, ...}
Objective = Callable[[Params, Mapping[str, Params], Any, Array], tuple[Terms, Metrics]]


def weighted(values: Array, mask: Array) -> Weighted:
    """Sums unreduced values over a mask; masked values never reach the sum, not even as NaN.

    Args:
      values: [...] float32.
      mask: [...] bool (or float32 weights) of the same shape.

    Returns:
      Weighted sum and the sum of the mask, float32 scalars.
    """
    weights = mask.astype(jnp.float32)
    total = jnp.sum(jnp.where(weights != 0, values.astype(jnp.float32), 0.0) * weights)
    return Weighted(total, jnp.sum(weights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtypes of a run. Softmax, norms, losses, log-probs and optimizer moments are float32 whatever stands here.

    Attributes:
      params: dtype of parameters (and so of the gradients that a backward pass returns). "float16" is for imported weights that
        are kept as they are; small gradients vanish in it.
      activations: dtype of matmul inputs and of the residual stream.
    """

    params: str = "float32"
    activations: str = "float32"

    def __post_init__(self) -> None:
        for name, allowed in (("params", ("float32", "bfloat16", "float16")), ("activations", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"precision.{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
