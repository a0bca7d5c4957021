"""The one training step: gradient of any objective, exact accumulation, clipping, a guard against non-finite values, the update."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Array, Metrics, Params, PyTree, Terms, Weighted
from lmx.sharding import place
from lmx.train.spec import TrainSpec
from lmx.train.state import TrainState, build_optimizer, frozen_shardings, state_shardings

Weights = dict[str, Array]  # each term's denominator over the whole batch


def build_step(spec: TrainSpec) -> Callable[[TrainState, Mapping[str, Params], PyTree], tuple[TrainState, Metrics]]:
    """Compiles to one program a call: (state, frozen, batch) -> (state, metrics); the given state's buffers are reused.

    The loss is the sum over terms of `coefficient * total / weight`, every weight summed over the whole batch before it is split
    into microbatches: the result doesn't depend on their number, however uneven the masks. (Terms that are themselves products of
    means, as the router's, are defined per microbatch.) Microbatch i takes rows i, i + n, i + 2n, ..., an even share of each
    device's.
    If loss or gradient norm is not finite, or the norm reaches `spec.drop_norm`, parameters and optimizer state stay as they are
    and `skipped` goes up.

    Metrics: the objective's own, and "loss", "grad_norm" (before clipping), "skipped" (1 if this step was) and "tokens" (with a
    segment), each of weight 1.
    """
    state, whole = state_shardings(spec), place.replicated(spec.mesh)
    batch = place.batch_shardings(spec.batch_spec, spec.mesh, spec.rules)
    return jax.jit(
        partial(train_step, spec),
        in_shardings=(state, frozen_shardings(spec), batch),
        out_shardings=(state, whole),
        donate_argnums=0,
    )


def build_eval_step(spec: TrainSpec) -> Callable[[Params, Mapping[str, Params], PyTree], Metrics]:
    """Compiles to one program a call: (params, frozen, batch) -> metrics, nothing changed or reused.

    Metrics: the objective's own, "tokens", and "loss" with the weight of the objective's first term, so that a mean over batches is
    exact where all terms share one mask.
    """
    whole = place.replicated(spec.mesh)
    batch = place.batch_shardings(spec.batch_spec, spec.mesh, spec.rules)
    in_shardings = (state_shardings(spec).params, frozen_shardings(spec), batch)
    return jax.jit(partial(_eval_step, spec), in_shardings=in_shardings, out_shardings=whole)


def train_step(spec: TrainSpec, state: TrainState, frozen: Mapping[str, Params], batch: PyTree) -> tuple[TrainState, Metrics]:
    """The step of `build_step` as a plain function, to be mapped over many runs; for the rest see there."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    loss, metrics, grads = _gradients(spec, state.params, frozen, batch, key)
    grad_norm = optax.global_norm(grads)
    applies = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spec.drop_norm is not None:
        applies &= grad_norm < spec.drop_norm
    if spec.clip_norm is not None:
        scale = spec.clip_norm / jnp.maximum(grad_norm, spec.clip_norm)
        grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt_state = build_optimizer(spec).update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(partial(jnp.where, applies), (params, opt_state), (state.params, state.opt_state))
    skipped = (~applies).astype(jnp.int32)
    one = jnp.ones((), jnp.float32)
    metrics = {
        **metrics,
        "loss": Weighted(loss, one),
        "grad_norm": Weighted(grad_norm, one),
        "skipped": Weighted(skipped.astype(jnp.float32), one),
        "tokens": Weighted(_valid_tokens(batch), one),
    }
    return TrainState(state.step + 1, params, opt_state, state.key, state.skipped + skipped), metrics


def _eval_step(spec: TrainSpec, params: Params, frozen: Mapping[str, Params], batch: PyTree) -> Metrics:
    key, microbatches = jax.random.key(0), _split(spec, batch)
    weights = _weights(spec, params, frozen, microbatches, key)

    def evaluate(rows: PyTree) -> tuple[Array, Metrics]:
        terms, metrics = spec.objective(params, frozen, rows, key)
        return _loss(terms, weights), metrics

    loss, metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(evaluate, microbatches))
    first = next(iter(weights.values()))
    return {**metrics, "loss": Weighted(loss * first, first), "tokens": Weighted(_valid_tokens(batch), jnp.ones((), jnp.float32))}


def _gradients(
    spec: TrainSpec, params: Params, frozen: Mapping[str, Params], batch: PyTree, key: Array
) -> tuple[Array, Metrics, PyTree]:
    """Loss, metrics and float32 gradient of the whole batch."""

    def loss(params: Params, rows: PyTree, key: Array, weights: Weights | None) -> tuple[Array, Metrics]:
        terms, metrics = spec.objective(params, frozen, rows, key)
        return _loss(terms, weights), metrics

    def value_and_grad(rows: PyTree, index: Array | int, weights: Weights | None) -> tuple[Array, Metrics, PyTree]:
        value, grads = jax.value_and_grad(loss, has_aux=True)(params, rows, jax.random.fold_in(key, index), weights)
        return *value, _constrain_like_params(spec, jax.tree.map(lambda g: g.astype(jnp.float32), grads))

    if spec.microbatches == 1:
        return value_and_grad(batch, 0, None)

    microbatches = _split(spec, batch)
    weights = _weights(spec, params, frozen, microbatches, key)

    def accumulate(sums: Any, item: tuple[Array, PyTree]) -> tuple[Any, None]:
        index, rows = item
        return jax.tree.map(jnp.add, sums, value_and_grad(rows, index, weights)), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(value_and_grad, first, 0, weights)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(accumulate, zeros, (jnp.arange(spec.microbatches), microbatches))
    return sums


def _weights(spec: TrainSpec, params: Params, frozen: Mapping[str, Params], microbatches: PyTree, key: Array) -> Weights:
    """Each term's weight, summed over the microbatches.

    Weights depend on the masks alone, so of this pass over the objective only sums of masks are left after dead code is removed.
    """

    def weights(rows: PyTree) -> Weights:
        terms, _ = spec.objective(params, frozen, rows, key)
        return {name: term.weight for name, (_, term) in terms.items()}

    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(weights, microbatches))


def _loss(terms: Terms, weights: Weights | None) -> Array:
    """Sum of `coefficient * total / weight`; a term without weight counts 0."""
    total = jnp.zeros((), jnp.float32)
    for name, (coefficient, term) in terms.items():
        weight = jax.lax.stop_gradient(term.weight if weights is None else weights[name])
        total += coefficient * Weighted(term.total, weight).mean()
    return total


def _split(spec: TrainSpec, batch: PyTree) -> PyTree:
    """[B, ...] -> [n, B / n, ...]: microbatch i has rows i, i + n, ...; rows stay on the device that holds them."""
    axes = place.constrain(spec.mesh, spec.rules)

    def split(x: Array) -> Array:
        rows = x.reshape(-1, spec.microbatches, *x.shape[1:]).swapaxes(0, 1)
        return axes(rows, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(split, batch)


def _constrain_like_params(spec: TrainSpec, grads: PyTree) -> PyTree:
    """Gradients live where their parameters live, so that sharded parameters mean sharded sums."""
    if spec.mesh.size == 1:
        return grads
    shardings = place.shardings(spec.model.axes, grads, spec.mesh, spec.rules)
    return jax.tree.map(jax.lax.with_sharding_constraint, grads, shardings)


def _valid_tokens(batch: PyTree) -> Array:
    """[] float32, tokens with a segment in all the token batches that a batch holds."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    counts = [jnp.sum(leaf > 0) for path, leaf in leaves if path and getattr(path[-1], "name", None) == "segment_ids"]
    return jnp.asarray(sum(counts), jnp.float32)
