"""How a decoder is run, as against what it is: precision, rematerialisation, kernels and sharding constraints."""

import dataclasses
from collections.abc import Callable

from lmx.core.types import Array, Precision
from lmx.kernels.attention.api import AttentionFn, attention, attention_with_lse
from lmx.model.experts import ExpertsFn, dropless_experts
from lmx.model.remat import POLICIES


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """The array itself: no sharding constraint."""
    del axes
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run a decoder; none of it changes the function that the model computes.

    Attributes:
      precision: dtypes of parameters and activations.
      remat: None = keep every activation, or a policy of `lmx.model.remat`: "full", "dots".
      unroll: repeats of the layer pattern in one iteration of the scan. At R (or more) there is no loop: activations for the
        backward pass stay where they are instead of being copied to and from a stack, and compile time grows with depth.
      attention: the attention kernel, or one wrapped for a mesh.
      attention_with_lse: the same with its log-sum-exp, for attention that is computed in parts (dual chunk).
      experts: the mixture-of-experts kernel (`lmx.model.experts.dropless_experts`), or one wrapped for a mesh.
      constrain: (array, logical activation axes) -> the array under a sharding constraint.
    """

    precision: Precision = Precision()
    remat: str | None = None
    unroll: int = 1
    attention: AttentionFn = attention
    attention_with_lse: AttentionFn = attention_with_lse
    experts: ExpertsFn = dropless_experts
    constrain: Callable[[Array, tuple[str | None, ...]], Array] = unconstrained

    def __post_init__(self) -> None:
        if self.remat is not None and self.remat not in POLICIES:
            raise ValueError(f"remat={self.remat!r} is not one of None, {', '.join(map(repr, POLICIES))}")
        if self.unroll < 1:
            raise ValueError(f"unroll={self.unroll} must be at least 1 repeat of the layer pattern an iteration")
