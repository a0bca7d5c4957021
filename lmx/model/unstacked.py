"""Decoding with the parameters and the cache of every layer in arrays of their own.

Layers are stacked for the sake of one compiled loop over the depth. A step of decoding reads every weight once, and where the
compiler copies a layer's slice out of the stack before it multiplies (XLA on a CPU), that costs more than the product. Unstacked,
nothing is copied; compile time grows with the depth.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.types import Outputs, Params, TokenBatch
from lmx.model import cache as kv_cache
from lmx.model.block import Repeat
from lmx.model.cache import Cache, Entries, LayerCache
from lmx.model.config import DecoderConfig, TiedHead
from lmx.model.embedding import embed
from lmx.model.execution import Execution
from lmx.model.heads import head_soft_cap
from lmx.model.inputs import block_inputs
from lmx.model.norm import rms_norm

_CONTRACTED_AXES = {"o": 2}  # of a linear layer's kernel; 1 in all others
_JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}  # linear layers of one input, multiplied as one


def is_unstacked(params: Params) -> bool:
    """Whether `unstack_params` made the parameters."""
    return isinstance(params["blocks"], tuple)


@jax.jit
def unstack_params(params: Params) -> Params:
    """A copy of a decoder's parameters for decoding.

    Its "blocks" are a tuple of the R repeats, without the leading axis "layers", and every linear layer's kernel [*in, *out] is
    "rows" [out, in]. Layers that read the same input, "q", "k" and "v" or "gate" and "up", are one, "qkv" or "gate_up": fewer and
    longer products spend less of their time on handing work to threads. The tables are the same arrays.
    """
    repeats = jax.tree.leaves(params["blocks"])[0].shape[0]
    blocks = tuple(_with_rows(jax.tree.map(lambda leaf, r=r: leaf[r], params["blocks"])) for r in range(repeats))
    return {**params, "blocks": blocks}


def _with_rows(tree: Params, name: str = "") -> Params:
    if not isinstance(tree, dict):
        return tree
    kernel = tree.get("kernel")
    rest = {key: _with_rows(value, key) for key, value in tree.items() if key != "kernel"}
    if kernel is None:
        return _with_joined(rest)
    contracted = math.prod(kernel.shape[: _CONTRACTED_AXES.get(name, 1)])
    return {**rest, "rows": kernel.reshape(contracted, -1).T}


def _with_joined(tree: Params) -> Params:
    for joined, names in _JOINED.items():
        if all(isinstance(tree.get(name), dict) for name in names):  # not the arrays of experts
            parts = [tree[name] for name in names]
            tree = {key: value for key, value in tree.items() if key not in names}
            tree[joined] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return tree


def unstack_cache(cache: Cache) -> Cache:
    """The cache with a tuple of R entries of leading axis 1 in place of each k and v."""

    def unstack(entries: Entries) -> Any:
        repeats = jax.tree.leaves(entries)[0].shape[0]
        return tuple(jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], entries) for r in range(repeats))

    layers = tuple(_with_entries(layer, unstack(layer.k), unstack(layer.v)) for layer in cache.layers)
    return dataclasses.replace(cache, layers=layers)


def stack_cache(cache: Cache) -> Cache:
    """The inverse of `unstack_cache`."""

    def stack(entries: Any) -> Entries:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *entries)

    layers = tuple(_with_entries(layer, stack(layer.k), stack(layer.v)) for layer in cache.layers)
    return dataclasses.replace(cache, layers=layers)


def decode(config: DecoderConfig, execution: Execution, params: Params, batch: TokenBatch, cache: Cache) -> tuple[Outputs, Cache]:
    """As `Model.decode`, of unstacked parameters and cache; no router statistics are taken."""
    table = params["embed"]["table"]
    x = embed(table, batch.tokens, scale=config.embedding_scale, dtype=execution.precision.activations)
    plans, cache = kv_cache.append(cache, batch)
    inputs = block_inputs(config, batch, plans)
    repeat = partial(Repeat(config, execution).apply, mutable=False)
    entries = []
    held: list[tuple[Any, Any]] = [(layer.k, layer.v) for layer in cache.layers]
    for r, block in enumerate(params["blocks"]):
        before = tuple((k[r], v[r]) for k, v in held)
        (x, after), _ = repeat({"params": block}, (x, before), 0, inputs)
        entries.append(after)
    places: Any = tuple(zip(*entries, strict=True))  # for each block of the pattern its R pairs of k and v
    written = [tuple(zip(*pairs, strict=True)) for pairs in places]
    layers = tuple(_with_entries(layer, k, v) for layer, (k, v) in zip(cache.layers, written, strict=True))
    outputs = Outputs(
        hidden=rms_norm(x, params["final_norm"]["gain"], config.final_norm),
        head=table if isinstance(config.head, TiedHead) else params["head"]["table"],
        soft_cap=head_soft_cap(config),
    )
    return outputs, dataclasses.replace(cache, layers=layers)


def _with_entries(layer: LayerCache, k: Any, v: Any) -> LayerCache:
    return dataclasses.replace(layer, k=k, v=v)
