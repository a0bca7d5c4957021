"""The state of a run: known as shapes and shardings before anything is allocated, then made in place on the mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmx.core.types import Array, Params, PyTree
from lmx.optim.optimizers import in_float32
from lmx.sharding import place
from lmx.train.spec import TrainSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step.

    Attributes:
      step: [] int32, batches seen, skipped ones included.
      params: the trained parameters.
      opt_state: the optimizer's state; it counts the updates made, skipped steps not included.
      key: [2] uint32 data of the run's random key; constant, each step folds in its number.
      skipped: [] int32, steps whose loss or gradient was not finite.
    """

    step: Array
    params: Params
    opt_state: PyTree
    key: Array
    skipped: Array


def build_optimizer(spec: TrainSpec) -> optax.GradientTransformationExtraArgs:
    """The spec's optimizer with float32 state; every reader of `opt_state` goes through it."""
    return in_float32(spec.optimizer)


def abstract_state(spec: TrainSpec) -> TrainState:
    """The state as jax.ShapeDtypeStruct leaves with their shardings: enough to restore, lower or count it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), _shapes(spec), state_shardings(spec)
    )


def state_shardings(spec: TrainSpec) -> Any:
    """A TrainState of NamedShardings: parameters by their logical axes, the optimizer's copies of them likewise, scalars whole."""
    shapes = _shapes(spec)
    whole: Any = place.replicated(spec.mesh)
    params = place.shardings(spec.model.axes, shapes.params, spec.mesh, spec.rules)
    return TrainState(whole, params, _like_params(shapes.opt_state, shapes.params, params, whole), whole, whole)


def frozen_shardings(spec: TrainSpec) -> dict[str, PyTree]:
    """Shardings of the parameters of `spec.frozen_models`."""
    shapes = {name: model.abstract_params() for name, model in spec.frozen_models.items()}
    return {name: place.shardings(spec.frozen_models[name].axes, shapes[name], spec.mesh, spec.rules) for name in shapes}


def init_state(spec: TrainSpec, key: Array) -> TrainState:
    """A fresh state, each device making its own shard; the values don't depend on the mesh, but for rounding.

    Args:
      spec: what will be trained.
      key: jax.random key of both the initialisation and the run.
    """

    def init(key: Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return _fresh(spec, spec.model.init(init_key), run_key)

    return jax.jit(init, out_shardings=state_shardings(spec))(key)


def state_from_params(spec: TrainSpec, params: Params, key: Array) -> TrainState:
    """A fresh state around given parameters, which are copied: the step may overwrite its own, never the caller's.

    Args:
      spec: what will be trained.
      params: numpy or jax arrays, placed anywhere; cast to the spec's dtype.
      key: jax.random key of the run.

    Raises:
      ValueError: names or shapes are not the model's; the first parameter that differs is named.
    """
    _, run_key = jax.random.split(key)
    shardings = state_shardings(spec)
    placed = _place_params(params, _shapes(spec).params, shardings.params)
    return jax.jit(lambda params, key: _fresh(spec, params, key), out_shardings=shardings)(placed, run_key)


def with_opt_state(spec: TrainSpec, state: TrainState, opt_state: PyTree) -> TrainState:
    """The state with another optimizer state, which is copied and placed as the spec has it.

    Raises:
      ValueError: it is of another optimizer or model; the first leaf that differs is named.
    """
    _check_params(opt_state, _shapes(spec).opt_state, what="the optimizer state is of another optimizer or model")
    placed = jax.device_put(opt_state, state_shardings(spec).opt_state)
    return dataclasses.replace(state, opt_state=jax.tree.map(jnp.copy, placed))


def place_frozen(spec: TrainSpec, frozen: Mapping[str, Params]) -> dict[str, Params]:
    """Puts the frozen models' parameters where the step expects them; arrays that are there already are not copied.

    Raises:
      ValueError: names or shapes are not those of `spec.frozen_models`.
    """
    if set(frozen) != set(spec.frozen_models):
        raise ValueError(
            f"the objective's frozen models are {sorted(spec.frozen_models)}, but parameters came for {sorted(frozen)}"
        )
    shardings = frozen_shardings(spec)
    for name, model in spec.frozen_models.items():
        _check_params(frozen[name], model.abstract_params())
    return {name: jax.device_put(frozen[name], shardings[name]) for name in spec.frozen_models}


def _fresh(spec: TrainSpec, params: Params, key: Array) -> TrainState:
    # Copies: an optimizer may hold the parameters themselves, and one buffer cannot be donated twice.
    params, opt_state = jax.tree.map(jnp.copy, (params, build_optimizer(spec).init(params)))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, opt_state, jax.random.key_data(key), zero)


def _shapes(spec: TrainSpec) -> TrainState:
    return jax.eval_shape(lambda key: _fresh(spec, spec.model.init(key), key), jax.eval_shape(jax.random.key, 0))


def _place_params(params: Params, abstract: PyTree, shardings: PyTree) -> Params:
    _check_params(params, abstract)
    cast = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), params, abstract)
    return jax.device_put(cast, shardings)


def _check_params(params: Params, abstract: PyTree, what: str = "the parameters are of another architecture") -> None:
    """Raises a ValueError that names the first leaf whose shape is not the one expected."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    given, expected = shapes(params), shapes(abstract)
    for name in sorted(given.keys() | expected.keys()):
        if given.get(name) != expected.get(name):
            raise ValueError(
                f"{what}: {name} is {given.get(name, 'missing')}, where the model has {expected.get(name, 'no such parameter')}"
            )


def _like_params(opt_state: PyTree, params: PyTree, shardings: PyTree, whole: jax.sharding.NamedSharding) -> PyTree:
    """Shardings of an optimizer's state: a leaf whose path ends in a parameter's path, and has its shape, lives where that lives.

    By path rather than by tree structure, so that masked and partitioned transformations, which leave holes, are covered too.
    """
    sharding_of = dict(jax.tree_util.tree_leaves_with_path(shardings))
    known = {path: (leaf.shape, sharding_of[path]) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def leaf_sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(leaf_sharding, opt_state)
