"""The Online Merging Optimizer: every update of an alignment run is merged with the task vector of the model it started from."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Array, Params, PyTree
from lmx.merging.linear import check_same_shapes
from lmx.merging.parts import leading_axes
from lmx.merging.statistics import kept_count
from lmx.merging.task_vectors import check_density


class OnlineMergingState(NamedTuple):
    """State of an online-merging optimizer.

    Attributes:
      updates: [] int32, updates made.
      key: [2] uint32, data of the random key; constant, each step folds in its number.
      loaded: [] bool, whether `task_vector` is the real one.
      task_vector: tau_r = SFT - base, float32, of the parameters' structure.
      carried: displacements since the last merge, float32, of the parameters' structure; () when every step merges.
      inner: state of the optimizer that proposes displacements.
    """

    updates: Array
    key: Array
    loaded: Array
    task_vector: PyTree
    carried: PyTree
    inner: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineMerging:
    """How displacements d of an optimizer are merged with the task vector tau_r; F sparsifies.

    mode "paper": OnDARE moves by `(1 - alpha) * F(d) + alpha * F(tau_r)`, F a Bernoulli mask without rescaling, drawn anew for
    both at each step; OnTIES adds the two terms where their signs agree, and else takes the larger one.
    mode "code", as the authors published it: OnDARE's F divides what it keeps by the share, `tau_r` is masked once and clipped to
    [-1, 1]; OnTIES tests signs on the sum of the terms without their weights, 0 counting as positive, and a tensor of which the
    share is less than one number is kept whole. With its `adam` this is all of the published optimizer but the error by which
    it leaves its loop over parameters in steps that do not merge.

    Attributes:
      method: "dare" (OnDARE) or "ties" (OnTIES, F keeps the largest magnitudes of each tensor of each layer).
      alpha: in [0, 1], share of the task vector.
      density: p, share of numbers that F keeps, in (0, 1].
      mode: see above.
      every: K: only each K-th step merges, all displacements since the last merge at once; those between apply them as they are.
      match_norm: mode "code" only: also rescale so that the sum of magnitudes stays what it was (the `rescale` of that code).
      weight_decay: share of a parameter removed after each update, per unit of learning rate.

    Reference: Lu et al. (2024), Online Merging Optimizers, arXiv:2405.17931, and github.com/QwenLM/online_merging_optimizers.
    """

    method: Literal["dare", "ties"] = "dare"
    alpha: float = 1e-7
    density: float = 0.01
    mode: Literal["paper", "code"] = "paper"
    every: int = 1
    match_norm: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.method not in ("dare", "ties") or self.mode not in ("paper", "code"):
            raise ValueError(f"method={self.method!r} must be 'dare' or 'ties', and mode={self.mode!r} 'paper' or 'code'")
        if not 0 <= self.alpha <= 1 or self.every < 1 or self.weight_decay < 0:
            raise ValueError(
                f"alpha={self.alpha} must lie in [0, 1], every={self.every} be at least 1, weight_decay={self.weight_decay} >= 0"
            )
        if self.match_norm and self.mode == "paper":
            raise ValueError("match_norm belongs to mode='code'; the paper does not rescale")

    def wrap(
        self,
        optimizer: optax.GradientTransformation,
        key: Array,
        *,
        sft: Params | None = None,
        base: Params | None = None,
        learning_rate: optax.ScalarOrSchedule = 1.0,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer whose displacements are merged.

        Args:
          optimizer: gives displacements `-lr * m / (sqrt(v) + eps)`, such as `optax.adam` or this module's `adam`; weight decay
            belongs behind the merge, into `weight_decay`.
          key: jax.random key of the masks.
          sft: the model that the run starts from.
          base: the pre-trained model behind it. Without the two, `with_task_vector` must put the task vector into the state before
            the first update, and every update is NaN until then: so that a jitted `init` of a large model need not hold both.
          learning_rate: by which `weight_decay` is multiplied.

        Raises:
          ValueError: only one of `sft` and `base`, or models of different shapes.
        """
        if (sft is None) != (base is None):
            raise ValueError("online merging needs both sft and base: their difference is the task vector")
        if sft is not None:
            check_same_shapes(sft, base)
        own = optax.with_extra_args_support(optimizer)
        init = functools.partial(_init, self, own, key, None if sft is None else _difference(sft, base))
        rate = learning_rate if callable(learning_rate) else (lambda count: learning_rate)
        return optax.GradientTransformationExtraArgs(init, functools.partial(_update, self, own, rate))

    def merge(self, displacement: Params, task_vector: Params, key: Array, count: Array) -> Params:
        """What one merging step moves the parameters by.

        Args:
          displacement: d, float32.
          task_vector: tau_r, float32, of the same structure.
          key: jax.random key of the run.
          count: [] int32, number of the step, from 1.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(displacement)
        moved = []
        for number, ((path, d), tau) in enumerate(zip(leaves, jax.tree.leaves(task_vector), strict=True)):
            leading = leading_axes(jax.tree_util.keystr(path, simple=True, separator="/"))
            if self.method == "ties":
                moved.append(self._ties(d, tau, min(leading, d.ndim)))
            else:
                moved.append(self._dare(d, tau, jax.random.fold_in(key, number), count, min(leading, d.ndim)))
        return jax.tree.unflatten(structure, moved)

    def _dare(self, d: Array, tau: Array, key: Array, count: Array, leading: int) -> Array:
        step, fixed = jax.random.fold_in(key, count), jax.random.fold_in(key, 0)  # steps count from 1
        draws = (jax.random.fold_in(step, 0), jax.random.fold_in(fixed if self.mode == "code" else step, 1))
        kept_d, kept_tau = (
            jnp.where(jax.random.bernoulli(draw, self.density, d.shape), x, 0.0) for draw, x in zip(draws, (d, tau), strict=True)
        )
        if self.mode == "code":
            kept_d, kept_tau = kept_d / self.density, jnp.clip(kept_tau / self.density, -1, 1)
            if self.match_norm:
                kept_d = jnp.clip(_same_sum(kept_d, d, tuple(range(leading, d.ndim)), eps=1e-6), -1, 1)
        return (1 - self.alpha) * kept_d + self.alpha * kept_tau

    def _ties(self, d: Array, tau: Array, leading: int) -> Array:
        kept_d, kept_tau = self._largest(d, leading), self._largest(tau, leading)
        first, second = (1 - self.alpha) * kept_d, self.alpha * kept_tau
        if self.mode == "paper":
            agree = jnp.sign(first) * jnp.sign(second) >= 0
            larger = jnp.where(jnp.abs(first) > jnp.abs(second), first, second)
            tie = jnp.abs(first) == jnp.abs(second)
            return jnp.where(agree, first + second, jnp.where(tie, 0.0, larger))
        elected = jnp.where(kept_d + kept_tau >= 0, 1.0, -1.0)
        return jnp.where(jnp.sign(kept_d) == elected, first, 0.0) + jnp.where(jnp.sign(kept_tau) == elected, second, 0.0)

    def _largest(self, x: Array, leading: int) -> Array:
        """The largest magnitudes of each tensor, 0 elsewhere; of equal ones at the border (Adam's first step) those in front."""
        size = math.prod(x.shape[leading:])
        if self.density == 1 or not size or (self.mode == "code" and int(self.density * size) < 1):
            return x
        axes = tuple(range(leading, x.ndim))
        bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.uint32)
        keep = kept_count(self.density, size)
        border = _kth_largest(bits, keep, axes)
        left = keep - jnp.sum(bits > border, axis=axes, keepdims=True, dtype=jnp.int32)
        equal = (bits == border).reshape(*x.shape[:leading], size)
        first = jnp.cumsum(equal, axis=-1, dtype=jnp.int32).reshape(x.shape) <= left
        kept = jnp.where((bits > border) | ((bits == border) & first), x, 0.0)
        return _same_sum(kept, x, axes, eps=0.0) if self.match_norm else kept


def _init(
    config: OnlineMerging, own: optax.GradientTransformationExtraArgs, key: Array, tau: Params | None, params: Params
) -> OnlineMergingState:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    if tau is not None:
        check_same_shapes(tau, params)
    return OnlineMergingState(
        updates=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
        loaded=jnp.asarray(tau is not None),
        task_vector=zeros if tau is None else tau,
        carried=() if config.every == 1 else zeros,
        inner=own.init(params),
    )


def _update(
    config: OnlineMerging,
    own: optax.GradientTransformationExtraArgs,
    rate: Callable[[Any], Any],
    updates: PyTree,
    state: OnlineMergingState,
    params: Params | None = None,
    **extra_args: object,
) -> tuple[PyTree, OnlineMergingState]:
    if params is None and config.weight_decay:
        raise ValueError("online merging with weight decay needs the parameters; call update(updates, state, params)")
    proposed, inner = own.update(updates, state.inner, params, **extra_args)
    count = optax.safe_increment(state.updates)
    key = jax.random.wrap_key_data(state.key)
    displacement = jax.tree.map(lambda d: jnp.asarray(d, jnp.float32), proposed)
    carried = state.carried
    if config.every == 1:
        moved = config.merge(displacement, state.task_vector, key, count)
    else:
        total = jax.tree.map(jnp.add, carried, displacement)
        # On step K what was carried is rolled back, and everything since the last merge is merged at once.
        moved, carried = jax.lax.cond(
            count % config.every == 0,
            lambda: (
                jax.tree.map(jnp.subtract, config.merge(total, state.task_vector, key, count), carried),
                jax.tree.map(jnp.zeros_like, total),
            ),
            lambda: (displacement, total),
        )
    if config.weight_decay:
        share = rate(state.updates) * config.weight_decay
        moved = jax.tree.map(lambda u, p: u - share * (p + u), moved, params)
    moved = jax.tree.map(lambda u: jnp.where(state.loaded, u, jnp.nan), moved)
    return moved, state._replace(updates=count, carried=carried, inner=inner)


def with_task_vector(opt_state: PyTree, sft: Params, base: Params) -> PyTree:
    """An optimizer's state, wherever in it online merging stands, with the task vector `sft - base`.

    Raises:
      ValueError: nothing in the state merges online, or the models have other shapes than the state.
    """
    check_same_shapes(sft, base)
    found = 0

    def visit(node: Any) -> Any:
        nonlocal found
        if not isinstance(node, OnlineMergingState):
            return node
        found += 1
        check_same_shapes(node.task_vector, sft)
        return node._replace(task_vector=_difference(sft, base), loaded=jnp.ones_like(node.loaded))

    new = jax.tree.map(visit, opt_state, is_leaf=lambda node: isinstance(node, OnlineMergingState))
    if not found:
        raise ValueError("the optimizer's state has no online merging to give a task vector to")
    return new


def adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Adam with eps beside the uncorrected root: `-lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`.

    The form of the published online-merging code, after transformers' AdamW; its defaults. Moments are float32.
    """
    rate = learning_rate if callable(learning_rate) else (lambda count: learning_rate)

    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates: PyTree, state: optax.OptState, params: Params | None = None) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        count = optax.safe_increment(state.count)
        step = rate(state.count) * jnp.sqrt(1 - b2 ** count.astype(jnp.float32)) / (1 - b1 ** count.astype(jnp.float32))
        moved = jax.tree.map(lambda m, v: -step * m / (jnp.sqrt(v) + eps), mu, nu)
        return moved, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _difference(sft: Params, base: Params) -> Params:
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.float32) - jnp.asarray(y, jnp.float32), sft, base)


def _kth_largest(bits: Array, k: int, axes: tuple[int, ...]) -> Array:
    """The k-th largest of uint32 below 2^31 over some axes, which stay as 1: found bit by bit, with no sort and no copy."""
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(bits.shape))

    def step(i: Array, found: Array) -> Array:
        trial = found | (jnp.uint32(1) << (30 - i).astype(jnp.uint32))
        enough = jnp.sum(bits >= trial, axis=axes, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, trial, found)

    return jax.lax.fori_loop(0, 31, step, jnp.zeros(shape, jnp.uint32))


def _same_sum(kept: Array, before: Array, axes: tuple[int, ...], eps: float) -> Array:
    """`kept` scaled to the sum of magnitudes that `before` has over some axes, unless that is next to nothing."""
    old, new = (jnp.sum(jnp.abs(x), axis=axes, keepdims=True) for x in (before, kept))
    return jnp.where(old >= 1e-8, kept * (old / jnp.where(new + eps > 0, new + eps, 1.0)), kept)
