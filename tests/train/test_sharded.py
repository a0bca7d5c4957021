"""Loss and gradient on eight simulated devices equal those on one, for every family and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.models import tiny
from lmx.data.batches import LMBatch, lm_batch_spec
from lmx.model.decoder import build_model
from lmx.objectives import RouterLoss, language_model
from lmx.sharding import DEFAULT_RULES, MeshConfig, build_mesh
from lmx.train.execution import build_execution, sharded_attention
from lmx.train.spec import TrainSpec
from lmx.train.state import abstract_state, state_from_params
from lmx.train.step import build_step

ROWS, LENGTH, VOCAB = 8, 16, 32
SIZES = {"model_dim": 16, "num_layers": 2, "q_heads": 8, "head_dim": 4, "ffn_dim": 16, "max_length": LENGTH}
FAMILIES = {
    "dense": tiny.llama3(VOCAB, **SIZES),
    "gemma2": tiny.gemma2(VOCAB, **{**SIZES, "window": 4}),
    "moe": tiny.qwen2_moe(VOCAB, **SIZES, num_experts=4),
}
ONE = MeshConfig()
CUBE = MeshConfig(data=2, fsdp=2, tensor=2)
# Two KV heads: over 4 or 8 tensor shards they are replicated and each shard picks the one that its queries read.
CASES = [
    ("dense", MeshConfig(data=8), 1),
    ("dense", CUBE, 2),
    ("dense", MeshConfig(fsdp=4, tensor=2), 1),
    ("dense", MeshConfig(tensor=8), 1),
    ("gemma2", MeshConfig(fsdp=2, tensor=4), 1),
    ("moe", CUBE, 1),
]
QUICK = {"xla_backend_optimization_level": 0}  # halves the compile time, which is all that these tests cost


def packed_batch() -> LMBatch:
    """Two documents a row and padding behind them, lengths differing from row to row."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    first, second = (random.integers(1, LENGTH // 2 + 1, (ROWS, 1)) for _ in range(2))
    place = np.arange(LENGTH, dtype=np.int32)
    segments = np.where(place < first, 1, np.where(place < first + second, 2, 0)).astype(np.int32)
    ends = (place == first - 1) | (place == first + second - 1)
    positions = np.where(segments == 1, place, np.where(segments == 2, place - first, 0)).astype(np.int32)
    return LMBatch(tokens[:, :-1], tokens[:, 1:], (segments > 0) & ~ends, segments, positions)


def gradient(family: str, config: MeshConfig, microbatches: int = 1) -> tuple[dict, dict]:
    """Metrics and gradient of one batch; SGD with rate 1 moves the parameters by the gradient."""
    mesh = build_mesh(config)
    model = build_model(FAMILIES[family], build_execution(mesh, DEFAULT_RULES))
    spec = TrainSpec(
        model=model,
        objective=language_model(model.apply, z_loss=1e-3, router=RouterLoss(balance=0.01, z=0.001)),
        optimizer=optax.sgd(1.0),
        clip_norm=None,
        batch_spec=lm_batch_spec(ROWS, LENGTH),
        mesh=mesh,
        rules=DEFAULT_RULES,
        microbatches=microbatches,
    )
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(scale=0.3, size=leaf.shape).astype(np.float32), model.abstract_params())
    step = build_step(spec).lower(abstract_state(spec), {}, spec.batch_spec).compile(QUICK)
    state = state_from_params(spec, params, jax.random.key(0))
    batch = jax.device_put(packed_batch(), jax.tree.map(lambda _: step.input_shardings[0][2].tokens, packed_batch()))
    state, metrics = step(state, {}, batch)
    return {name: metric.mean() for name, metric in metrics.items()}, jax.tree.map(
        np.subtract, params, jax.device_get(state.params)
    )


@pytest.fixture(scope="module")
def on_one_device():
    """family -> what one device computes, each compiled once."""
    cache = {}

    def get(family: str) -> tuple[dict, dict]:
        if family not in cache:
            cache[family] = gradient(family, ONE)
        return cache[family]

    return get


def name_case(value: object) -> str:
    return f"{value.data}x{value.fsdp}x{value.tensor}" if isinstance(value, MeshConfig) else str(value)


@pytest.mark.parametrize(("family", "mesh", "microbatches"), CASES, ids=name_case)
def test_loss_and_gradient_do_not_depend_on_the_mesh(on_one_device, family, mesh, microbatches):
    whole, sharded = on_one_device(family), gradient(family, mesh, microbatches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sharded, whole)


@pytest.mark.parametrize(("q_heads", "kv_heads", "tensor"), [(8, 4, 4), (8, 2, 4), (12, 6, 4), (8, 1, 8), (6, 3, 4)])
def test_query_heads_meet_their_kv_heads_on_every_shard(q_heads, kv_heads, tensor):
    """A kernel that adds its KV head to each query head, and so shows which one it was given."""

    def kernel(q, k, v, *, positions, segment_ids):
        return q + jnp.repeat(k + v, q.shape[2] // k.shape[2], axis=2)

    mesh = build_mesh(MeshConfig(data=8 // tensor, tensor=tensor))
    q = np.zeros((2, 3, q_heads, 1), np.float32)
    k = np.arange(kv_heads, dtype=np.float32)[None, None, :, None] * np.ones((2, 3, 1, 1), np.float32)
    ids = jnp.ones((2, 3), jnp.int32)
    out = jax.jit(sharded_attention(kernel, mesh, DEFAULT_RULES))(q, k, k, positions=ids, segment_ids=ids)
    np.testing.assert_array_equal(out[0, 0, :, 0], 2 * (np.arange(q_heads) // (q_heads // kv_heads)))


def test_on_one_device_the_kernels_are_left_as_they_are():
    plain = lambda *args: args  # noqa: E731
    execution = build_execution(build_mesh(ONE), DEFAULT_RULES, attention_kernel=plain, experts_kernel=plain)
    assert execution.attention is plain and execution.experts is plain
