"""Which activations of a layer are kept for the backward pass and which are computed again."""

from typing import Any

import jax
from flax import linen as nn

# "full": keep each layer's input alone; about a third more compute, least memory.
# "dots": keep the outputs of the weight matmuls too; norms, activations, RoPE, attention and expert products are redone.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialized(module: type[nn.Module], policy: str | None, *, in_loop: bool) -> Any:
    """The module class, its calls rematerialised under a policy of `POLICIES`; None = keep everything.

    Args:
      module: class of the module.
      policy: name of the policy.
      in_loop: the calls run in the body of a loop, across whose border XLA merges nothing. Elsewhere it would merge the second
        computation with the first, which keeps the activations after all, and barriers are needed to prevent that.
    """
    if policy is None:
        return module
    return nn.remat(module, policy=POLICIES[policy], prevent_cse=not in_loop)
