"""lmx's side: its train step through the public API. It also writes its initial weights, for the other side to start from."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.models import tiny
from lmx.data.batches import LMBatch, lm_batch_spec
from lmx.model.accounting import flops_per_token
from lmx.model.config import DecoderConfig, Llama3Scaling
from lmx.model.decoder import build_model
from lmx.objectives import language_model
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES
from lmx.train.execution import build_execution
from lmx.train.spec import TrainSpec
from lmx.train.state import init_state
from lmx.train.step import build_step
from tools.bench_sides import protocol


def build(shape: str, folder: Path) -> protocol.Trainee:
    """A jitted `TrainSpec` step on one device; weights and numbers of the model go to the folder."""
    config = _config(shape)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    model = build_model(config, build_execution(mesh, DEFAULT_RULES))
    optimizer = optax.adamw(
        protocol.LEARNING_RATE, b1=protocol.BETA1, b2=protocol.BETA2, eps=protocol.EPSILON, weight_decay=protocol.WEIGHT_DECAY
    )
    spec = TrainSpec(
        model=model,
        objective=language_model(model.apply),
        optimizer=optimizer,
        batch_spec=lm_batch_spec(protocol.BATCH, protocol.LENGTH),
        mesh=mesh,
        rules=DEFAULT_RULES,
        clip_norm=protocol.CLIP_NORM,
    )
    train_step, state, batch = build_step(spec), init_state(spec, jax.random.key(0)), _batch(shape)
    _write(folder, config, state.params)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, {}, batch)
        return float(metrics["loss"].mean())

    product, matrix = jax.jit(jnp.matmul), jnp.ones((protocol.MATRIX, protocol.MATRIX))
    flops = flops_per_token(config, protocol.LENGTH, training=True)
    return protocol.Trainee(step, lambda: product(matrix, matrix).block_until_ready(), flops)


def _config(shape: str) -> DecoderConfig:
    sizes = dict(
        model_dim=protocol.MODEL_DIM,
        num_layers=protocol.LAYERS,
        q_heads=protocol.Q_HEADS,
        kv_heads=protocol.KV_HEADS,
        head_dim=protocol.HEAD_DIM,
        ffn_dim=protocol.FFN_DIM,
        max_length=protocol.LENGTH,
    )
    if shape == "llama":
        return tiny.llama3(protocol.VOCABULARY[shape], **sizes)
    return tiny.gemma2(protocol.VOCABULARY[shape], **sizes, window=protocol.WINDOW)


def _batch(shape: str) -> LMBatch:
    """Each row one document: every token but the last has a label."""
    tokens = jnp.asarray(protocol.tokens(shape))
    places = jnp.broadcast_to(jnp.arange(protocol.LENGTH), tokens.shape)
    return LMBatch(
        tokens=tokens,
        labels=jnp.roll(tokens, -1, axis=1),
        loss_mask=places < protocol.LENGTH - 1,
        segment_ids=jnp.ones_like(tokens),
        positions=places,
    )


def _write(folder: Path, config: DecoderConfig, params: dict) -> None:
    """`params.npz` with the paths of the parameters as names, and `model.json` with what the other side can't know."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    np.savez(folder / "params.npz", **arrays)
    attention = config.layer_pattern[0].attention
    scaling = attention.rope.scaling
    numbers = {
        "pattern": len(config.layer_pattern),
        "norm_eps": config.final_norm.eps,
        "rope_theta": attention.rope.theta,
        "rope_factor": scaling.factor if isinstance(scaling, Llama3Scaling) else None,
        "original_length": scaling.original_length if isinstance(scaling, Llama3Scaling) else None,
        "attention_scale": attention.head_dim**-0.5 if attention.scale is None else attention.scale,
    }
    (folder / "model.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    protocol.serve(build)
