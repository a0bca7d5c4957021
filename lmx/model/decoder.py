"""The decoder: embedding, scanned layers, final norm and head; and `build_model`, which makes pure functions of it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmx.core.types import Array, Outputs, Params, PyTree, TokenBatch
from lmx.model import cache as kv_cache
from lmx.model import unstacked
from lmx.model.block import scan_layers
from lmx.model.cache import Append, Cache
from lmx.model.config import DecoderConfig
from lmx.model.embedding import Table, embed
from lmx.model.execution import Execution
from lmx.model.heads import Head, head_soft_cap
from lmx.model.inputs import block_inputs
from lmx.model.moe import router_statistics
from lmx.model.norm import RMSNorm

_PLAIN = Execution()


class Decoder(nn.Module):
    """A decoder-only transformer.

    Attributes:
      config: what it is.
      execution: how to run it.
    """

    config: DecoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, batch: TokenBatch, cache: Cache | None = None) -> tuple[Outputs, Cache | None]:
        """Hidden states and head, and the cache with the batch's tokens appended.

        Args:
          batch: [B, T] tokens, segment ids and positions.
          cache: earlier tokens of the same rows; None = the batch holds whole documents.
        """
        config, execution = self.config, self.execution
        precision = execution.precision
        table = Table(config.vocab_size, config.model_dim, "vocab", precision, config.init_std, name="embed")()
        # Gathered over the model axis before the look-up: left to itself the partitioner replicates the whole activations instead.
        rows = execution.constrain(table, ("activation_vocab", None))
        x = embed(rows, batch.tokens, scale=config.embedding_scale, dtype=precision.activations)
        x = execution.constrain(x, ("batch", "length", "activation_embed"))
        plans: tuple[Append | None, ...] = (None,) * len(config.layer_pattern)
        entries = None
        if cache is not None:
            plans, cache = kv_cache.append(cache, batch)
            entries = tuple((layer.k, layer.v) for layer in cache.layers)
        layers = scan_layers(config, execution)
        (x, entries), routings = layers((x, entries), jnp.arange(config.num_repeats), block_inputs(config, batch, plans))
        if cache is not None and entries is not None:
            written = [dataclasses.replace(old, k=k, v=v) for old, (k, v) in zip(cache.layers, entries, strict=True)]
            cache = dataclasses.replace(cache, layers=tuple(written))
        x = RMSNorm(config.final_norm, "embed", precision, name="final_norm")(x)
        outputs = Outputs(
            hidden=execution.constrain(x, ("batch", "length", "activation_embed")),
            head=Head(config, precision, name="head")(table),
            router=router_statistics(list(routings), batch.segment_ids),
            soft_cap=head_soft_cap(config),
        )
        return outputs, cache


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder as pure functions.

    Attributes:
      config: what the model is.
      axes: the structure of the parameters, each leaf a tuple of logical axis names (`is_leaf=lambda x: isinstance(x, tuple)`);
        "layers" names the leading axis of parameters that are stacked over the repeats of the layer pattern.
      init: random key -> parameters, a nested dict of arrays.
      apply: (parameters, batch) -> outputs.
      init_cache: (batch_size, length, kv_dtype=None) -> empty cache for rows of at most `length` tokens, its keys and values in the
        activation dtype or, for "int8", quantized.
      decode: (parameters, batch, cache) -> outputs of the batch's T >= 1 new tokens a row, and the cache with them appended.
        Prefill and a single step are the same function. Tokens with segment id 0 are padding: they are not written, and
        rows may so grow by different numbers of tokens. Positions go on from `cache.lengths` (in a row of one document).
        The caller keeps within the length given to `init_cache`: what does not fit is not written. Parameters and cache may also
        be unstacked (`lmx.model.unstacked`), which is faster on CPUs.
    """

    config: DecoderConfig
    axes: PyTree
    init: Callable[[Array], Params]
    apply: Callable[[Params, TokenBatch], Outputs]
    init_cache: Callable[..., Cache]
    decode: Callable[[Params, TokenBatch, Cache], tuple[Outputs, Cache]]

    def abstract_params(self) -> PyTree:
        """Shapes and dtypes of the parameters, without making any."""
        return jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))

    def num_params(self) -> int:
        """Number of parameters, every table counted once."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract_params()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Probe:
    """The smallest batch, to trace the modules with."""

    tokens: Any
    segment_ids: Any
    positions: Any


@functools.lru_cache(maxsize=64)  # the same functions for the same model, so that what was compiled for one serves all of its kind
def build_model(config: DecoderConfig, execution: Execution = _PLAIN) -> Model:
    """Pure functions of a decoder; no array is made and no device touched.

    Args:
      config: what the model is.
      execution: how to run it; parameters depend on nothing of it but `precision.params`.
    """
    decoder = Decoder(config, execution)
    initializer = Decoder(config, Execution(precision=execution.precision))  # one token cannot be sharded

    def init_boxed(key: Array) -> Params:
        zeros = np.zeros((1, 1), np.int32)
        return initializer.init(key, _Probe(zeros, zeros + 1, zeros))["params"]

    @jax.jit  # called alone, it would otherwise run the forward pass op by op
    def init(key: Array) -> Params:
        return jax.tree.map(lambda box: box.value, init_boxed(key), is_leaf=_is_box)

    def apply(params: Params, batch: TokenBatch) -> Outputs:
        _check_length(config, batch)
        outputs, _ = decoder.apply({"params": params}, batch)
        return outputs

    def init_cache(batch_size: int, length: int, kv_dtype: str | None = None) -> Cache:
        if kv_dtype not in (None, "int8"):
            raise ValueError(f"kv_dtype={kv_dtype!r} is not one of None (the activation dtype), 'int8'")
        return kv_cache.init_cache(config, batch_size, length, kv_dtype or execution.precision.activations)

    def decode(params: Params, batch: TokenBatch, cache: Cache) -> tuple[Outputs, Cache]:
        _check_length(config, batch)
        if unstacked.is_unstacked(params):
            return unstacked.decode(config, execution, params, batch, cache)
        result: Any = decoder.apply({"params": params}, batch, cache)
        return result

    boxes = jax.eval_shape(init_boxed, jax.eval_shape(jax.random.key, 0))
    axes = jax.tree.map(lambda box: tuple(box.names), boxes, is_leaf=_is_box)
    return Model(config, axes, init, apply, init_cache, decode)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def _check_length(config: DecoderConfig, batch: TokenBatch) -> None:
    length = batch.tokens.shape[1]
    if length > config.max_length:
        raise ValueError(
            f"a batch of {length} tokens a row exceeds the model's max_length={config.max_length}; "
            "shorten the sequences or raise max_length"
        )
