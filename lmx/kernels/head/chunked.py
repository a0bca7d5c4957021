"""Per-token losses of the logits, a chunk of tokens at a time: no [B, T, V] is kept, forward or backward.

Two custom VJPs over one loop. `token_losses` has a cotangent for every token, so its backward pass computes each chunk of logits
again: four matrix products a chunk in all. `loss_sum` has a single scalar cotangent, so it computes the gradient while the chunk's
logits are at hand and only scales it later: three.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from lmx.core.types import Array, PyTree
from lmx.kernels.head.reference import cap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arrays that a loss reads.

    Attributes:
      hidden: one [B, T, D] per Outputs.
      head: one [V, D] per Outputs.
      cut: per-token keywords of the loss, [B, T, ...], cut into the same chunks as `hidden`; no gradient.
      whole: array keywords passed whole to every chunk; no gradient.
    """

    hidden: tuple[Array, ...]
    head: tuple[Array, ...]
    cut: dict[str, Array]
    whole: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static of a loss.

    Attributes:
      fn: called with one float32 logits chunk [B, c, V] per Outputs and the keywords; returns `(losses, extra)`, pytrees of
        [B, c] arrays, of which only the first is differentiated.
      soft_caps: one per Outputs.
      chunk: c, tokens of a row in one chunk.
    """

    fn: Callable[..., tuple[PyTree, PyTree]]
    soft_caps: tuple[float | None, ...]
    chunk: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Needs:
    """Which gradients are wanted, one flag per Outputs: those under `stop_gradient` are known when tracing and cost nothing."""

    hidden: tuple[bool, ...]
    head: tuple[bool, ...]


def values(plan: Plan, inputs: Inputs) -> tuple[PyTree, PyTree]:
    """`(losses, extra)`, [B, T] each."""
    head = _cast_heads(inputs)

    def body(_: None, chunk: tuple[tuple[Array, ...], dict[str, Array]]) -> tuple[None, PyTree]:
        hidden, cut = chunk
        return None, _losses(plan, inputs.whole, cut, *_products(hidden, head))

    _, stacked = jax.lax.scan(body, None, split((inputs.hidden, inputs.cut), plan.chunk))
    return join(stacked, inputs.hidden[0].shape[1])


def values_and_grads(
    plan: Plan, inputs: Inputs, seeds: PyTree, needs: Needs
) -> tuple[tuple[PyTree, PyTree], tuple[Array | None, ...], tuple[Array | None, ...]]:
    """The losses and the gradient of `sum(seeds * losses)`, both from one product of each chunk.

    Tokens whose seeds are all 0 never matter, not even as NaN: they are computed at a zero hidden state and their gradient is 0.

    Args:
      plan: the loss.
      inputs: its arrays.
      seeds: like the losses, [B, T] float32 each.
      needs: the gradients wanted.

    Returns:
      `(losses, extra)`, [B, T] each; one hidden gradient [B, T, D] and one head gradient [V, D] per Outputs, None if not wanted.
    """
    head = _cast_heads(inputs)

    def body(sums: tuple[Array | None, ...], chunk: Any) -> tuple[Any, Any]:
        hidden, cut, seed = chunk
        active = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda s: s != 0, seed))[..., None]  # [B, c, 1]
        hidden = tuple(jnp.where(active, h, 0) for h in hidden)
        losses, pullback, extra = jax.vjp(partial(_losses, plan, inputs.whole, cut), *_products(hidden, head), has_aux=True)
        slopes = [jnp.where(active, slope, 0).astype(h.dtype) for slope, h in zip(pullback(seed), hidden, strict=True)]  # [B, c, V]
        hidden_grads = tuple(
            jnp.einsum("BCV,VD->BCD", slope, w) if needed else None
            for slope, w, needed in zip(slopes, head, needs.hidden, strict=True)
        )
        sums = tuple(
            None if total is None else total + jnp.einsum("BCD,BCV->DV", h, slope, preferred_element_type=jnp.float32)
            for total, slope, h in zip(sums, slopes, hidden, strict=True)
        )
        return sums, ((losses, extra), hidden_grads)

    # [D, V], not [V, D]: XLA's CPU backend would transpose the wide slopes first (1.5 times slower; x86, float32, V = 8192).
    zeros = tuple(jnp.zeros(w.shape[::-1], jnp.float32) if need else None for w, need in zip(inputs.head, needs.head, strict=True))
    head_grads, stacked = jax.lax.scan(body, zeros, split((inputs.hidden, inputs.cut, seeds), plan.chunk))
    losses, hidden_grads = join(stacked, inputs.hidden[0].shape[1])
    head_grads = tuple(None if g is None else g.T.astype(w.dtype) for g, w in zip(head_grads, inputs.head, strict=True))
    return losses, hidden_grads, head_grads


def token_losses(plan: Plan, inputs: Inputs) -> PyTree:
    """The losses, [B, T] each, without `extra`."""
    run = jax.custom_vjp(lambda inputs: values(plan, inputs)[0])
    run.defvjp(partial(_token_losses_forward, plan), partial(_token_losses_backward, plan), symbolic_zeros=True)
    return run(inputs)


def loss_sum(plan: Plan, inputs: Inputs, mask: Array) -> tuple[Array, PyTree]:
    """The sum of `mask * losses`, and `extra`, [B, T] each; `mask` is [B, T] float32 and `losses` one array."""
    run = jax.custom_vjp(partial(_loss_sum, plan))
    run.defvjp(partial(_loss_sum_forward, plan), _loss_sum_backward, symbolic_zeros=True)
    return run(inputs, mask)


def _token_losses_forward(plan: Plan, inputs: Inputs) -> tuple[PyTree, tuple[Inputs, Needs]]:
    inputs, needs = primals(inputs)
    return values(plan, inputs)[0], (inputs, needs)


def _token_losses_backward(plan: Plan, residuals: tuple[Inputs, Needs], cotangents: PyTree) -> tuple[Inputs]:
    inputs, needs = residuals
    _, hidden, head = values_and_grads(plan, inputs, instantiate(cotangents), needs)
    return (Inputs(hidden, head, None, None),)  # type: ignore[arg-type]  # None: no cotangent


def _loss_sum(plan: Plan, inputs: Inputs, mask: Array) -> tuple[Array, PyTree]:
    losses, extra = values(plan, inputs)
    return masked_sum(losses, mask), extra


def _loss_sum_forward(plan: Plan, inputs: Inputs, mask: Array) -> tuple[tuple[Array, PyTree], PyTree]:
    inputs, needs = primals(inputs)
    mask = mask.value  # type: ignore[attr-defined]
    (losses, extra), hidden, head = values_and_grads(plan, inputs, mask, needs)
    return (masked_sum(losses, mask), extra), (hidden, head)


def _loss_sum_backward(residuals: PyTree, cotangents: tuple[Array, PyTree]) -> tuple[Inputs, None]:
    scale = instantiate(cotangents[0])
    hidden, head = jax.tree.map(lambda g: (g * scale).astype(g.dtype), residuals)
    return Inputs(hidden, head, None, None), None  # type: ignore[arg-type]  # None: no cotangent


def masked_sum(losses: Array, mask: Array) -> Array:
    """[] float32, the sum of `mask * losses`; where the mask is 0 the loss is not read."""
    return jnp.sum(jnp.where(mask != 0, losses, 0.0) * mask)


def _losses(plan: Plan, whole: dict[str, Array], cut: dict[str, Array], *products: Array) -> tuple[PyTree, PyTree]:
    return plan.fn(*map(cap, products, plan.soft_caps), **whole, **cut)


def _products(hidden: tuple[Array, ...], head: tuple[Array, ...]) -> list[Array]:
    """One [B, c, V] float32 per Outputs, before the soft cap."""
    return [jnp.einsum("BCD,VD->BCV", h, w, preferred_element_type=jnp.float32) for h, w in zip(hidden, head, strict=True)]


def _cast_heads(inputs: Inputs) -> tuple[Array, ...]:
    return tuple(w.astype(h.dtype) for h, w in zip(inputs.hidden, inputs.head, strict=True))


def split(tree: PyTree, chunk: int) -> PyTree:
    """[B, T, ...] -> [T / c, B, c, ...], T padded with zeros to a multiple of c. B is kept whole: it may be sharded."""

    def split_leaf(x: Array) -> Array:
        batch, length, *rest = x.shape
        count = -(-length // chunk)
        padded = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(padded.reshape(batch, count, chunk, *rest), 1, 0)

    return jax.tree.map(split_leaf, tree)


def join(tree: PyTree, length: int) -> PyTree:
    """[T / c, B, c, ...] -> [B, T, ...], the inverse of `split`."""

    def join_leaf(x: Array) -> Array:
        count, batch, chunk, *rest = x.shape
        return jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, *rest)[:, :length]

    return jax.tree.map(join_leaf, tree)


def primals(inputs: Inputs) -> tuple[Inputs, Needs]:
    """Unwraps the arguments of a forward rule and reads which of them a gradient is wanted for."""
    is_primal = lambda x: isinstance(x, CustomVJPPrimal)  # noqa: E731
    perturbed = jax.tree.map(lambda x: x.perturbed, inputs, is_leaf=is_primal)
    moving = [name for name, flag in {**perturbed.cut, **perturbed.whole}.items() if flag]
    if moving:
        raise NotImplementedError(f"no gradient flows to keyword {moving[0]!r} of a token loss; wrap it in jax.lax.stop_gradient")
    return jax.tree.map(lambda x: x.value, inputs, is_leaf=is_primal), Needs(perturbed.hidden, perturbed.head)


def instantiate(cotangents: PyTree) -> PyTree:
    """Zeros in place of symbolic zeros."""
    is_zero = lambda x: isinstance(x, SymbolicZero)  # noqa: E731
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if is_zero(x) else x, cotangents, is_leaf=is_zero)
