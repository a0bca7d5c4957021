"""A two-matrix language model, so small that a step compiles in a second, and specs around it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.core.types import Outputs, weighted
from lmx.data.batches import LMBatch, lm_batch_spec
from lmx.losses import likelihood
from lmx.model.decoder import Model
from lmx.sharding import DEFAULT_RULES, MeshConfig, build_mesh
from lmx.train.spec import TrainSpec
from lmx.train.state import TrainState, build_optimizer

VOCAB, DIM, FFN, LENGTH = 16, 8, 16, 6


def make_init(dtype: str) -> Callable:
    def init(key: jax.Array) -> dict:
        table, up, head = jax.random.split(key, 3)
        params = {
            "embed": {"table": jax.random.normal(table, (VOCAB, DIM))},
            "ffn": {"up": jax.random.normal(up, (DIM, FFN)), "bias": jnp.zeros(FFN)},
            "head": {"table": jax.random.normal(head, (VOCAB, FFN))},
        }
        return jax.tree.map(lambda x: x.astype(dtype), params)

    return init


def apply(params: dict, batch: LMBatch) -> Outputs:
    hidden = jnp.tanh(params["embed"]["table"][batch.tokens] @ params["ffn"]["up"] + params["ffn"]["bias"])
    return Outputs(hidden, params["head"]["table"])


def objective(params: dict, frozen: dict, batch: LMBatch, key: jax.Array) -> tuple:
    """Two terms with denominators of their own: cross-entropy over the loss mask, entropy over whole rows."""
    outputs = apply(params, batch)
    logits = jnp.einsum("BTD,VD->BTV", outputs.hidden, outputs.head).astype(jnp.float32)
    nll = weighted(likelihood.cross_entropy(logits, labels=batch.labels), batch.loss_mask)
    entropy = weighted(likelihood.entropy(logits).mean(1), jnp.any(batch.segment_ids > 0, axis=1))
    return {"nll": (1.0, nll), "entropy": (-0.1, entropy)}, {
        "nll": nll,
        "noise": weighted(jax.random.normal(key, (1,)), jnp.ones(1)),
    }


@pytest.fixture
def make_model() -> Callable:
    """`make_model(dtype="float32")`."""
    axes = {
        "embed": {"table": ("vocab", "embed")},
        "ffn": {"up": ("embed", "ffn"), "bias": ("ffn",)},
        "head": {"table": ("vocab", None)},
    }
    return lambda dtype="float32": Model(None, axes, make_init(dtype), apply, None, None)


@pytest.fixture
def make_spec(make_model: Callable) -> Callable:
    """`make_spec(**fields of TrainSpec, rows=8, dtype="float32", mesh=MeshConfig())`."""

    def make(*, rows: int = 8, dtype: str = "float32", mesh: MeshConfig = MeshConfig(), **fields: object) -> TrainSpec:  # noqa: B008
        defaults = {"model": make_model(dtype), "objective": objective, "optimizer": optax.adamw(0.01), "rules": DEFAULT_RULES}
        return TrainSpec(**{**defaults, "batch_spec": lm_batch_spec(rows, LENGTH), "mesh": build_mesh(mesh), **fields})

    return make


@pytest.fixture
def start() -> Callable:
    """`start(spec, seed=0)`: a fresh state made on the host, where nothing has to be compiled."""

    def make(spec: TrainSpec, seed: int = 0) -> TrainState:
        random, shapes = np.random.default_rng(0), spec.model.abstract_params()
        params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)
        opt_state = jax.device_get(build_optimizer(spec).init(jax.tree.map(jnp.asarray, params)))
        return TrainState(np.int32(0), params, opt_state, np.array([0, seed], np.uint32), np.int32(0))  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_batch() -> Callable:
    """`make_batch(seed=0, rows=8)`: rows of lengths from nothing to whole, so that no two microbatches weigh the same."""

    def make(seed: int = 0, rows: int = 8) -> LMBatch:
        random = np.random.default_rng(seed)
        tokens = random.integers(0, VOCAB, (rows, LENGTH + 1), dtype=np.int32)
        lengths = random.permutation(np.arange(rows) % (LENGTH + 1))[:, None]
        place = np.arange(LENGTH, dtype=np.int32)
        valid = place < lengths
        return LMBatch(
            tokens=tokens[:, :-1],
            labels=tokens[:, 1:],
            loss_mask=(place < lengths - 1) & (random.random((rows, LENGTH)) < 0.8),
            segment_ids=valid.astype(np.int32),
            positions=np.where(valid, place, 0).astype(np.int32),
        )

    return make
