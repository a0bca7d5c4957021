"""How a model runs on a mesh: its kernels under `shard_map`, its activations under sharding constraints."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmx.core.types import Array, Precision
from lmx.kernels.attention.api import AttentionFn, attention, attention_with_lse
from lmx.model.execution import Execution
from lmx.model.experts import ExpertsFn, dropless_experts
from lmx.sharding import place
from lmx.sharding.rules import Rules
from lmx.sharding.wrap import shard_by_axes

_TOKENS = ("batch", "length")
_QUERIES = ("batch", "length", "activation_heads", None)


def build_execution(
    mesh: Mesh,
    rules: Rules,
    *,
    precision: Precision = Precision(),  # noqa: B008  frozen
    remat: str | None = None,
    attention_kernel: AttentionFn = attention,
    attention_with_lse_kernel: AttentionFn = attention_with_lse,
    experts_kernel: ExpertsFn = dropless_experts,
) -> Execution:
    """What `build_model` needs to run a decoder on a mesh; on a single device the kernels are left as they are.

    Args:
      mesh: device mesh.
      rules: logical axis -> mesh axes.
      precision: dtypes of parameters and activations.
      remat: rematerialisation policy, None = keep every activation.
      attention_kernel: attention of one device.
      attention_with_lse_kernel: attention of one device that returns its log-sum-exp too.
      experts_kernel: mixture of experts of one device.
    """
    if mesh.size > 1:
        attention_kernel = sharded_attention(attention_kernel, mesh, rules)
        attention_with_lse_kernel = sharded_attention(attention_with_lse_kernel, mesh, rules, output_ranks=(4, 3))
        experts_kernel = sharded_experts(experts_kernel, mesh, rules)
    return Execution(
        precision=precision,
        remat=remat,
        attention=attention_kernel,
        attention_with_lse=attention_with_lse_kernel,
        experts=experts_kernel,
        constrain=place.constrain(mesh, rules),
    )


def sharded_attention(kernel: AttentionFn, mesh: Mesh, rules: Rules, output_ranks: tuple[int, ...] | None = None) -> AttentionFn:
    """Attention with the batch split by "batch" and query heads by "activation_heads"; `output_ranks` as in `shard_by_axes`.

    KV heads go with their query heads where they divide; else every device holds all and picks those that its queries read.
    """
    head_axes = rules.mesh_axes("activation_heads")

    def sharded(q: Array, k: Array, v: Array, **options: Any) -> Any:
        arrays = {
            name: value for name, value in options.items() if name.endswith(("positions", "segment_ids")) and value is not None
        }
        static = {name: value for name, value in options.items() if name not in arrays}
        q_heads, kv_heads = q.shape[2], k.shape[2]
        shards = place.extent(mesh, head_axes)
        split_kv = kv_heads % shards == 0
        select_kv = q_heads % shards == 0 and not split_kv

        def shard(q: Array, k: Array, v: Array, arrays: dict[str, Array]) -> Any:
            if select_kv:
                first = jax.lax.axis_index(head_axes) * q.shape[2]
                k, v = (_kv_heads_read(x, first, q.shape[2], q_heads // kv_heads) for x in (k, v))
            return kernel(q, k, v, **arrays, **static)

        kv_axes = _QUERIES if split_kv else (*_TOKENS, None, None)
        inputs = (_QUERIES, kv_axes, kv_axes, dict.fromkeys(arrays, _TOKENS))
        return shard_by_axes(shard, mesh, rules, inputs, output_ranks)(q, k, v, arrays)

    return sharded


def _kv_heads_read(x: Array, first: Array, count: int, group: int) -> Array:
    """KV heads, of x [B, S, K, H], that query heads first .. first + count - 1 read, G = `group` query heads reading each.

    Returns:
      One head if it serves all of these queries, else one for every query head.
    """
    if group % count == 0:
        return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2)
    return jnp.take(x, (first + jnp.arange(count)) // group, axis=2)


def sharded_experts(kernel: ExpertsFn, mesh: Mesh, rules: Rules) -> ExpertsFn:
    """Experts with tokens split by "batch" and each expert's width by "ffn", whose partial results are added."""
    ffn_axes = rules.mesh_axes("ffn")

    def sharded(x: Array, gate: Array, up: Array, down: Array, expert_ids: Array, weights: Array, **options: Any) -> Array:
        partial_sums = gate.shape[2] % place.extent(mesh, ffn_axes) == 0

        def shard(*arrays: Array) -> Array:
            y = kernel(*arrays, **options)
            return jax.lax.psum(y, ffn_axes) if partial_sums else y

        tokens, wide, narrow = (*_TOKENS, None), (None, None, "ffn"), (None, "ffn", None)
        inputs = (tokens, wide, wide, narrow, tokens, tokens)
        return shard_by_axes(shard, mesh, rules, inputs)(x, gate, up, down, expert_ids, weights)

    return sharded
