"""lmx's side of `tools/bench_generate.py`: its engine through the public API. It also writes the weights for the others."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.models import tiny
from lmx.model.config import DecoderConfig, TiedHead
from lmx.model.decoder import build_model
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Request, Sampling
from tools.bench_sides import generate_protocol as protocol

DECODE_STEPS = 32  # as `lmx.sampling.generate`, where nobody reads along


def build(shape: str, folder: Path) -> protocol.Generator:
    """An engine for each batch size, all with the same weights; weights and numbers of the model go to the folder."""
    config = _config(protocol.SHAPES[shape])
    model = build_model(config)
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = np.float32(protocol.INIT_STD) * generator.standard_normal(leaf.shape, np.float32)
        return noise + np.float32(path[-1].key == "gain")

    params = jax.tree_util.tree_map_with_path(draw, model.abstract_params())
    _write(folder, config, params)
    params = jax.tree.map(jnp.asarray, params)
    engines: dict[int, Engine] = {}

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        batch = len(prompts)
        if batch not in engines:
            sizes = EngineConfig(slots=batch, max_length=protocol.PROMPT + protocol.NEW, decode_steps=DECODE_STEPS)
            engines.clear()  # one pool at a time
            engines[batch] = Engine(model, params, config=sizes, eos_ids=[])
        sampling = Sampling(max_new_tokens=new, temperature=0.0)
        completions = engines[batch].run([Request(prompt=prompt.tolist(), sampling=sampling) for prompt in prompts])
        return np.asarray([samples[0].tokens for samples in completions])

    product, matrix = jax.jit(jnp.matmul), jnp.ones((protocol.MATRIX, protocol.MATRIX))
    total, array = jax.jit(jnp.sum), jnp.ones(protocol.READ_BYTES // 4)
    return protocol.Generator(
        generate, lambda: product(matrix, matrix).block_until_ready(), lambda: total(array).block_until_ready()
    )


def _config(shape: protocol.Shape) -> DecoderConfig:
    config = tiny.llama3(
        shape.vocabulary,
        model_dim=shape.model_dim,
        num_layers=shape.layers,
        q_heads=shape.q_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        ffn_dim=shape.ffn_dim,
        max_length=protocol.PROMPT + protocol.NEW,
    )
    return dataclasses.replace(config, head=TiedHead()) if shape.tied else config


def _write(folder: Path, config: DecoderConfig, params: dict) -> None:
    """`params.npz` with the paths of the parameters as names, and `model.json` with what the other sides can't know."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    np.savez(folder / "params.npz", **arrays)
    rope = config.layer_pattern[0].attention.rope
    numbers = {
        "norm_eps": config.final_norm.eps,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling is None else dataclasses.asdict(rope.scaling),
    }
    (folder / "model.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    protocol.serve(build)
