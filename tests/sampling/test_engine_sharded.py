"""The engine on a mesh of eight simulated devices against one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmx.model.decoder import Model, build_model
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Request, Sampling
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES
from lmx.train.execution import build_execution

SIZES = EngineConfig(slots=4, max_length=64, prefill_chunk=16, decode_steps=4)


@pytest.mark.parametrize(
    ("family", "mesh_config", "kv_dtype"),
    [
        ("llama3", MeshConfig(data=2, fsdp=2, tensor=2), None),
        ("gemma2", MeshConfig(fsdp=4, tensor=2), "int8"),
    ],
)
def test_tokens_do_not_depend_on_the_mesh(
    family: str, mesh_config: MeshConfig, kv_dtype: str | None, build_family: Callable[[str], tuple[Model, Any]]
) -> None:
    model, params = build_family(family)
    random = np.random.default_rng(1)
    sampled = Sampling(max_new_tokens=6, temperature=0.8, top_p=0.9, repetition_penalty=1.2, top_logprobs=2)
    kinds = [Sampling(max_new_tokens=6, temperature=0.0), sampled]
    requests = [
        Request(prompt=random.integers(2, 60, length).tolist(), sampling=kinds[i % 2], seed=i, n=1 + i % 2)
        for i, length in enumerate((1, 21, 5, 16, 3))
    ]
    config = dataclasses.replace(SIZES, kv_dtype=kv_dtype)
    alone = Engine(model, params, config=config, eos_ids=[]).run(requests)
    mesh = build_mesh(mesh_config, jax.devices()[: np.prod([size for size in dataclasses.astuple(mesh_config)])])
    spread_model = build_model(model.config, build_execution(mesh, DEFAULT_RULES))
    engine = Engine(spread_model, params, config=config, eos_ids=[], mesh=mesh)
    spread = engine.run(requests)
    entries = [leaf for leaf in jax.tree.leaves(engine._pool._slots.cache.layers) if leaf.ndim == 5]
    assert all(len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in entries)
    for one, two in zip(alone, spread, strict=True):
        assert [c.tokens for c in one] == [c.tokens for c in two]
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)
