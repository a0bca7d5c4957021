"""Dual chunk attention on a mesh: its parts carry log-sum-exps through `shard_map`."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.models import tiny
from lmx.data.batches import LMBatch
from lmx.model.config import DualChunk
from lmx.model.decoder import build_model
from lmx.sharding import place
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES
from lmx.train.execution import build_execution


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, tensor=4), MeshConfig(fsdp=4, tensor=2)])
def test_dual_chunk_attention_does_not_depend_on_the_mesh(mesh):
    config = tiny.qwen2(48, model_dim=32, num_layers=2, q_heads=8, kv_heads=2, head_dim=8, ffn_dim=32, max_length=64)
    (block,) = config.layer_pattern
    attention = dataclasses.replace(block.attention, dual_chunk=DualChunk(window=12, chunk_size=8))
    config = dataclasses.replace(config, layer_pattern=(dataclasses.replace(block, attention=attention),))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 48, (4, 40)).astype(np.int32)
    segment_ids = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), tokens.shape)
    batch = LMBatch(tokens, np.zeros_like(tokens), segment_ids > 0, segment_ids, positions)
    single = build_model(config)
    params = single.init(jax.random.key(0))
    expected = jax.jit(single.apply)(params, batch).hidden

    devices = build_mesh(mesh)
    sharded = build_model(config, build_execution(devices, DEFAULT_RULES))
    placed = jax.device_put(params, place.shardings(sharded.axes, sharded.abstract_params(), devices, DEFAULT_RULES))
    found = jax.jit(sharded.apply)(placed, batch).hidden
    np.testing.assert_allclose(found, expected, atol=2e-5)
