"""Many small runs in one program: arms and seeds that share shapes train side by side under `vmap`.

An arm differs from another in values that are traced: its learning rates, knobs that the objective reads, its parameters or data.
Leading axes are always [A, S]: arms, then seeds. All arms of a seed see the same batches in the same order unless told otherwise,
so that differences between arms are paired.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmx.core.types import Array, Params, PyTree
from lmx.data.batches import LMBatch
from lmx.model.decoder import Model
from lmx.optim.schedules import Schedule
from lmx.train.spec import TrainSpec
from lmx.train.state import TrainState, build_optimizer
from lmx.train.step import train_step


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of a population.

    Attributes:
      params: leaves [A, S, ...], numpy.
      metrics: name -> [A, S, N] float32, the metrics of every step, means.
      snapshots: number of steps made -> the parameters then, for those asked for.
      states: number of steps made -> the whole training state then, for the same steps, where it was asked for.
    """

    params: Params
    metrics: dict[str, np.ndarray]
    snapshots: dict[int, Params]
    states: dict[int, TrainState] = dataclasses.field(default_factory=dict)


class _RateState(NamedTuple):
    rate: Array
    inner: PyTree


def initial(model: Model, seeds: Sequence[int], arms: int = 1) -> Params:
    """Fresh parameters with leaves [A, S, ...]: the arms of a seed start from the same ones."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return repeated(jax.device_get(jax.jit(jax.vmap(model.init))(keys)), arms)


def repeated(tree: PyTree, arms: int) -> PyTree:
    """Leaves [S, ...] -> [A, S, ...], the same for every arm."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (arms, *np.shape(x))), tree)


def stacked(batches: Iterable[PyTree], count: int) -> PyTree:
    """The first `count` batches of a loader, leaves [N, B, ...]."""
    iterator = iter(batches)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[next(iterator) for _ in range(count)])


def rates(schedules: Sequence[Schedule], steps: int) -> np.ndarray:
    """[A, N] float32: the learning rates of each schedule at each step."""
    return np.stack([np.asarray(jax.vmap(schedule.build(steps))(jnp.arange(steps)), np.float32) for schedule in schedules])


def train(
    spec: TrainSpec,
    params: Params,
    batches: PyTree,
    *,
    rates: np.ndarray,
    knobs: Mapping[str, PyTree] | None = None,
    frozen: Mapping[str, PyTree] | None = None,
    own_batches: bool = False,
    snapshots: Sequence[int] = (),
    chunk: int = 50,
    start: TrainState | None = None,
    keep_states: bool = False,
) -> Trained:
    """Trains all members with `train_step`, the very step of a stage.

    Args:
      spec: of a member. Its optimizer is built at the constant rate 1; updates are multiplied by the member's rate, which is the
        same thing for every optimizer whose update is its rate times something that does not depend on the rate.
      params: leaves [A, S, ...].
      batches: leaves [S, N, B, ...]; with `own_batches` [A, S, N, B, ...].
      rates: [A, N] learning rate of each step.
      knobs: name -> pytree with leaves [A, ...]: what the objective reads as `frozen[name]`, by arm.
      frozen: name -> pytree with leaves [S, ...]: what the objective reads as `frozen[name]`, by seed; computed once for all arms.
      own_batches: each arm has batches of its own.
      snapshots: numbers of steps after which the parameters are kept.
      chunk: steps of a dispatch, at most.
      start: a state of an earlier call with the same optimizer, leaves [A, S, ...], to go on from with `params`; None = a fresh
        optimizer.
      keep_states: keep the whole state beside each snapshot.

    Raises:
      ValueError: the leading axes don't fit.
    """
    arms, steps = rates.shape
    _check(params, batches, arms, steps, own_batches=own_batches)
    knobs, frozen = dict(knobs or {}), dict(frozen or {})
    spec = dataclasses.replace(spec, optimizer=_with_rate(spec.optimizer))
    seeds = jax.tree.leaves(params)[0].shape[1]
    if start is None:
        state = jax.jit(jax.vmap(jax.vmap(partial(_fresh, spec)), in_axes=(0, None)))(params, np.arange(seeds, dtype=np.uint32))
    else:
        state = dataclasses.replace(start, params=params)
    run = _compiled(spec, own_batches)
    marks = sorted({*snapshots, *range(chunk, steps, chunk), steps} - {0})
    kept: dict[int, Params] = {0: jax.device_get(params)} if 0 in snapshots else {}
    states: dict[int, TrainState] = {}
    collected = []
    begin = 0
    for end in marks:
        axis = 2 if own_batches else 1
        part = jax.tree.map(lambda x, a=begin, b=end, axis=axis: x[(slice(None),) * axis + (slice(a, b),)], batches)
        state, metrics = run(state, rates[:, begin:end], part, knobs, frozen)
        collected.append(jax.device_get(metrics))
        if end in snapshots:
            kept[end] = jax.device_get(state.params)
            if keep_states:
                states[end] = jax.device_get(state)
        begin = end
    joined = {name: np.concatenate([part[name] for part in collected], axis=2) for name in collected[0]}
    return Trained(jax.device_get(state.params), joined, kept, states)


def evaluate(function: Callable[..., PyTree], params: Params, batches: PyTree, *, own_batches: bool = False) -> PyTree:
    """A function of every member on every batch.

    Args:
      function: (params, batch) -> pytree of arrays.
      params: leaves [A, S, ...].
      batches: leaves [N, B, ...], the same for all members; with `own_batches` [S, N, B, ...], by seed.
      own_batches: each seed has batches of its own.

    Returns:
      Leaves [A, S, N, ...], numpy.
    """

    def member(params: Params, batches: PyTree) -> PyTree:
        return jax.lax.map(partial(function, params), batches)

    by_seed = jax.vmap(member, in_axes=(0, 0 if own_batches else None))
    return jax.device_get(jax.jit(jax.vmap(by_seed, in_axes=(0, None)))(params, batches))


def mean_over_tokens(values: np.ndarray, batches: LMBatch, where: np.ndarray | None = None) -> np.ndarray:
    """[A, S] float64: the mean of [A, S, N, B, T] over the loss mask of batches [N, B, T] or [S, N, B, T], and over `where`."""
    mask = np.asarray(batches.loss_mask) if where is None else np.asarray(batches.loss_mask) & where
    weights = np.broadcast_to(mask, values.shape).astype(np.float64)
    return (values * weights).sum(axis=(2, 3, 4)) / weights.sum(axis=(2, 3, 4))


def _with_rate(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its updates multiplied by a rate that its state holds."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> _RateState:
        return _RateState(jnp.ones((), jnp.float32), inner.init(params))

    def update(updates: PyTree, state: _RateState, params: Params | None = None, **extra: object) -> tuple[PyTree, _RateState]:
        updates, after = inner.update(updates, state.inner, params, **extra)
        return jax.tree.map(lambda u: state.rate * u, updates), _RateState(state.rate, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _fresh(spec: TrainSpec, params: Params, seed: Array) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, build_optimizer(spec).init(params), jax.random.key_data(jax.random.key(seed)), zero)


def _compiled(spec: TrainSpec, own_batches: bool) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    def member(state: TrainState, rates: Array, batches: PyTree, knobs: Any, frozen: Any) -> tuple[TrainState, dict[str, Array]]:
        def step(state: TrainState, item: tuple[Array, PyTree]) -> tuple[TrainState, dict[str, Array]]:
            rate, batch = item
            state = dataclasses.replace(state, opt_state=state.opt_state._replace(rate=rate))
            state, metrics = train_step(spec, state, {**knobs, **frozen}, batch)
            return state, {name: metric.mean() for name, metric in metrics.items()}

        return jax.lax.scan(step, state, (rates, batches))

    of_arm = jax.vmap(member, in_axes=(0, None, 0, None, 0))  # over seeds
    of_all = jax.vmap(of_arm, in_axes=(0, 0, 0 if own_batches else None, 0, None), out_axes=(0, 0))  # over arms
    return jax.jit(of_all, donate_argnums=0)


def _check(params: Params, batches: PyTree, arms: int, steps: int, *, own_batches: bool) -> None:
    leaves = jax.tree.leaves(params)
    seeds = {np.shape(leaf)[:2] for leaf in leaves}
    if len(seeds) != 1 or next(iter(seeds))[0] != arms:
        raise ValueError(f"rates have {arms} arms, but the parameters' leading axes [arms, seeds] are {sorted(seeds)}")
    wanted = (*next(iter(seeds)), steps) if own_batches else (next(iter(seeds))[1], steps)
    found = {np.shape(leaf)[: len(wanted)] for leaf in jax.tree.leaves(batches)}
    if found != {wanted}:
        raise ValueError(f"the batches' leading axes are {sorted(found)}, but {wanted} are needed for these rates and parameters")
