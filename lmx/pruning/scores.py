"""What the parts of a model are worth, by their weights, by what they do to a text, or by the toss of a coin."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmx.core.types import Array, Params, TokenBatch
from lmx.model import rope
from lmx.model.attention import BlockInputs
from lmx.model.block import Block
from lmx.model.config import DecoderConfig, FFNConfig
from lmx.model.decoder import build_model
from lmx.model.embedding import embed
from lmx.model.execution import Execution
from lmx.model.linear import Linear
from lmx.model.norm import RMSNorm
from lmx.optim.layout import path_name
from lmx.pruning.choose import Scores


def weight_scores(params: Params, config: DecoderConfig) -> Scores:
    """The norm of all weights that a part is made of: an FFN unit's column of gate and up and its row of down, and so on.

    Args:
      params: arrays.
      config: their architecture.

    Returns:
      Scores without layers: the weights of a layer don't tell what it does to the stream.
    """
    axes = jax.tree_util.tree_leaves_with_path(build_model(config).axes, is_leaf=lambda x: isinstance(x, tuple))
    arrays = dict((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    dense = [isinstance(block.ffn, FFNConfig) for block in config.layer_pattern]
    sums: dict[tuple[str, int], Any] = {}
    for path, names in axes:
        name = path_name(path)
        if name.endswith("/gain"):
            continue
        place = int(name.split("/")[1]) if name.startswith("blocks/") else -1
        for axis in ("embed", "q_heads", "kv_heads", "ffn"):
            if axis in names and (axis != "ffn" or dense[place]):
                kept = (names.index("layers"), names.index(axis)) if axis != "embed" else (names.index(axis),)
                found = np.asarray(_squares(arrays[name], kept), np.float64)
                key = (axis, -1 if axis == "embed" else place)
                sums[key] = sums.get(key, 0.0) + found
    roots = {key: np.sqrt(total) for key, total in sums.items()}
    places = range(len(config.layer_pattern))
    return Scores(
        embed=roots["embed", -1],
        q_heads=tuple(roots["q_heads", place] for place in places),
        kv_heads=tuple(roots["kv_heads", place] for place in places),
        ffn=tuple(roots["ffn", place] if dense[place] else None for place in places),
    )


def activation_scores(
    params: Params,
    config: DecoderConfig,
    batches: Iterable[TokenBatch],
    *,
    execution: Execution = Execution(),  # noqa: B008
) -> Scores:
    """Root mean squares of activations over the tokens of some text, and what each layer does to the stream.

    An FFN unit counts by its activation before the down projection, a query head by its output, a KV head by those of its queries,
    a channel by the outputs of the norms in front of attention and FFN, summed over layers; a layer by its block influence,
    1 - E[cos(input, output)]. One layer's activations are in memory at a time.

    Args:
      params: arrays, on one device or on the mesh that `execution` is built for.
      config: their architecture.
      batches: token batches of one shape; padding doesn't count.
      execution: how to run.

    Raises:
      ValueError: there is no batch with a token.

    Reference: Muralidharan et al. (2024), arXiv:2407.14679 (Minitron), section 2.2; block influence as in Men et al. (2024),
      arXiv:2403.03853 (ShortGPT), Eq. 1.
    """
    places = range(len(config.layer_pattern))
    steps = [jax.jit(partial(_layer_step, config, place, execution)) for place in places]
    totals: dict[int, dict[str, np.ndarray]] = {}
    tokens = 0.0
    for batch in batches:
        x = embed(params["embed"]["table"], batch.tokens, scale=config.embedding_scale, dtype=execution.precision.activations)
        tokens += float(np.sum(np.asarray(batch.segment_ids) > 0))
        for layer in range(config.num_layers):
            repeat, place = divmod(layer, len(places))
            x, found = steps[place](params["blocks"][str(place)], x, batch, repeat)
            summed = {name: np.asarray(value, np.float64) for name, value in found.items()}
            before = totals.get(layer)
            totals[layer] = summed if before is None else {name: before[name] + summed[name] for name in summed}
    if not tokens:
        raise ValueError("activation scores need text, but the batches hold no token")
    return _from_sums(config, totals, tokens)


def random_scores(config: DecoderConfig, seed: int) -> Scores:
    """Scores drawn at random: the baseline that any other choice must beat."""
    random = np.random.default_rng(seed)
    repeats, pattern = config.num_repeats, config.layer_pattern
    return Scores(
        embed=random.random(config.model_dim),
        q_heads=tuple(random.random((repeats, block.attention.q_heads)) for block in pattern),
        kv_heads=tuple(random.random((repeats, block.attention.kv_heads)) for block in pattern),
        ffn=tuple(random.random((repeats, b.ffn.ffn_dim)) if isinstance(b.ffn, FFNConfig) else None for b in pattern),
        layers=random.random(config.num_layers),
    )


@partial(jax.jit, static_argnums=1)
def _squares(array: Array, kept: tuple[int, ...]) -> Array:
    """Sum of squares over all axes but the kept ones, which come in their order."""
    others = tuple(axis for axis in range(array.ndim) if axis not in kept)
    summed = jnp.sum(jnp.square(array.astype(jnp.float32)), axis=others)
    return summed.T if list(kept) != sorted(kept) else summed


def _layer_step(
    config: DecoderConfig, place: int, execution: Execution, stacked: Params, x: Array, batch: TokenBatch, repeat: Array
) -> tuple[Array, dict[str, Array]]:
    """One layer, and sums over the tokens of the squares of its activations."""
    block = config.layer_pattern[place]
    params = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, repeat, keepdims=False), stacked)
    cos, sin = rope.rotation(batch.positions, block.attention.head_dim, block.attention.rope)
    inputs = BlockInputs(batch.positions, batch.segment_ids, cos, sin)
    valid = batch.segment_ids > 0
    seen: dict[str, Array] = {}

    def squares(values: Array) -> Array:
        return jnp.sum(jnp.where(valid[..., None], jnp.square(values.astype(jnp.float32)), 0.0), axis=(0, 1))

    def watch(next_fn: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        y = next_fn(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Linear) and module.name == "o":
            seen["q_heads"] = squares(jnp.linalg.norm(args[0].astype(jnp.float32), axis=-1))
        elif context.method_name == "__call__" and isinstance(module, Linear) and module.name == "down":
            seen["ffn"] = squares(args[0])
        elif context.method_name == "__call__" and isinstance(module, RMSNorm) and module.name in ("attention_norm", "ffn_norm"):
            seen["embed"] = seen.get("embed", 0.0) + squares(y)
        return y

    module = Block(block, config.model_dim, execution, config.init_std)
    with nn.intercept_methods(watch):
        result: Any = module.apply({"params": params}, x, inputs, None, repeat)
    y = result[0]
    a, b = x.astype(jnp.float32), y.astype(jnp.float32)
    cosine = jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1) + 1e-12)
    seen["cosine"] = jnp.sum(jnp.where(valid, cosine, 0.0))
    return y, seen


def _from_sums(config: DecoderConfig, totals: dict[int, dict[str, np.ndarray]], tokens: float) -> Scores:
    """Scores from each layer's sums."""
    pattern = config.layer_pattern

    def stacked(name: str, place: int) -> np.ndarray:
        layers = range(place, config.num_layers, len(pattern))
        return np.sqrt(np.stack([totals[layer][name] for layer in layers]) / tokens)

    q_heads = tuple(stacked("q_heads", place) for place in range(len(pattern)))
    kv_heads = tuple(
        np.sqrt(np.sum(np.square(heads).reshape(len(heads), block.attention.kv_heads, -1), axis=-1))
        for heads, block in zip(q_heads, pattern, strict=True)
    )
    return Scores(
        embed=np.sqrt(sum(found["embed"] for found in totals.values()) / tokens),
        q_heads=q_heads,
        kv_heads=kv_heads,
        ffn=tuple(stacked("ffn", place) if isinstance(block.ffn, FFNConfig) else None for place, block in enumerate(pattern)),
        layers=np.array([1 - totals[layer]["cosine"] / tokens for layer in range(config.num_layers)]),
    )
