"""Dense logits: the specification of the chunked head, and the right choice for a few tokens."""

import jax.numpy as jnp

from lmx.core.types import Array, Outputs, PyTree


def cap(scores: Array, soft_cap: float | None) -> Array:
    """c * tanh(scores / c), or the scores themselves when `soft_cap` is None."""
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def logits(outputs: Outputs) -> Array:
    """[B, T, V] float32 logits; the product reads both operands in the dtype of the hidden states."""
    head = outputs.head.astype(outputs.hidden.dtype)
    return cap(jnp.einsum("BTD,VD->BTV", outputs.hidden, head, preferred_element_type=jnp.float32), outputs.soft_cap)


def token_loss(*outputs_and_fn) -> PyTree:  # type: ignore[no-untyped-def]
    """`fn` of the whole [B, T, V] logits of each Outputs; arguments and results as in `api.token_loss`."""
    *outputs, fn = outputs_and_fn
    return fn(*map(logits, outputs))
