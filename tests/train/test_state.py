import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lmx.sharding import MeshConfig
from lmx.train.state import abstract_state, init_state, place_frozen, state_from_params, state_shardings
from lmx.train.step import build_step

CUBE = MeshConfig(data=2, fsdp=2, tensor=2)
KEY = jax.random.key(0)


def test_the_abstract_state_is_what_init_makes_down_to_the_shardings(make_spec):
    spec = make_spec(mesh=CUBE)
    abstract, state = abstract_state(spec), init_state(spec, KEY)
    described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
    assert described(abstract) == described(state)


def test_initial_values_do_not_depend_on_the_mesh(make_spec):
    states = [jax.device_get(init_state(make_spec(mesh=mesh), KEY)) for mesh in (CUBE, MeshConfig())]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)  # the compiler may round a normal's last bit


def test_moments_are_sharded_like_their_parameters_and_counts_replicated(make_spec):
    adam = state_shardings(make_spec(mesh=CUBE)).opt_state[0]
    assert adam.mu["ffn"]["up"].spec == adam.nu["ffn"]["up"].spec == PartitionSpec("fsdp", "tensor")
    assert adam.count.spec == PartitionSpec()


def test_moments_behind_masks_and_partitions_are_sharded_too(make_spec):
    """These leave holes in the parameters' tree, so matching whole trees would miss them."""
    labels = {"embed": "slow", "ffn": "fast", "head": "slow"}
    optimizer = optax.multi_transform({"slow": optax.sgd(0.1, momentum=0.9), "fast": optax.adam(0.1)}, labels)
    spec = make_spec(mesh=CUBE, optimizer=optax.chain(optimizer, optax.masked(optax.ema(0.9), lambda p: {**labels, "ffn": True})))
    by_path = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(state_shardings(spec).opt_state)
    }
    specs = [spec for path, spec in by_path.items() if path.endswith("ffn/up")]
    assert len(specs) >= 3 and set(specs) == {PartitionSpec("fsdp", "tensor")}


def test_moments_are_float32_for_bfloat16_parameters(make_spec):
    state = init_state(make_spec(dtype="bfloat16"), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_key_is_plain_data_that_a_checkpoint_can_hold(make_spec):
    state = init_state(make_spec(), KEY)
    assert state.key.dtype == jnp.uint32 and state.key.shape == (2,)


def test_a_state_from_parameters_leaves_the_callers_arrays_alive_after_a_donated_step(make_spec, make_batch):
    spec = make_spec()
    params = jax.device_put(spec.model.init(KEY), state_shardings(spec).params)
    before = jax.device_get(params)
    state, _ = build_step(spec)(state_from_params(spec, params, KEY), {}, make_batch())
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert not np.array_equal(state.params["ffn"]["up"], before["ffn"]["up"])


def test_parameters_from_the_host_are_cast_and_placed(make_spec):
    spec = make_spec(dtype="bfloat16", mesh=CUBE)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 1.5, np.float32), spec.model.abstract_params())
    state = state_from_params(spec, params, KEY)
    assert state.params["ffn"]["up"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert state.params["ffn"]["up"].dtype == jnp.bfloat16 and np.all(np.asarray(state.params["ffn"]["up"]) == 1.5)


def test_parameters_of_another_architecture_are_refused_by_name(make_spec):
    spec = make_spec()
    params = spec.model.init(KEY)
    params["ffn"]["up"] = params["ffn"]["up"][:4]
    with pytest.raises(ValueError, match=r"ffn/up is \(4, 16\), where the model has \(8, 16\)"):
        state_from_params(spec, params, KEY)
    del params["ffn"]["up"]
    with pytest.raises(ValueError, match=r"ffn/up is missing, where the model has"):
        state_from_params(spec, params, KEY)


def test_frozen_parameters_are_placed_by_the_rules_of_their_own_model(make_spec, make_model):
    spec = make_spec(mesh=CUBE, frozen_models={"teacher": make_model()})
    params = jax.tree.map(np.asarray, spec.model.init(KEY))
    placed = place_frozen(spec, {"teacher": params})
    assert placed["teacher"]["ffn"]["up"].sharding.spec == PartitionSpec("fsdp", "tensor")


def test_missing_frozen_parameters_are_named(make_spec, make_model):
    with pytest.raises(ValueError, match=r"\['teacher'\], but parameters came for \[\]"):
        place_frozen(make_spec(frozen_models={"teacher": make_model()}), {})


@pytest.mark.parametrize(("rows", "microbatches"), [(6, 4), (8, 2)])
def test_a_batch_that_does_not_split_evenly_is_refused_with_the_numbers(make_spec, rows, microbatches):
    with pytest.raises(ValueError, match=f"a batch of {rows} rows cannot be split into {microbatches} microbatches"):
        make_spec(rows=rows, microbatches=microbatches, mesh=MeshConfig(data=8) if rows == 8 else MeshConfig())
