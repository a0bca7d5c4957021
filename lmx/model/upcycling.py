"""Upcycling: a mixture of experts whose experts are cut out of the FFN of a trained dense model.

In every layer the dense FFN is copied until there are columns enough for all experts, each copy's intermediate axis is permuted on
its own (gate, up and down alike), the copies are laid end to end and cut into experts, and what is left over is dropped. Half of
each expert is drawn anew, so that experts that began as the same columns go different ways.

Reference: Yang et al. (2024), arXiv:2407.10671 (Qwen2-57B-A14B from Qwen2-7B), section 2.2.2. The report doesn't say of what the
half consists, how it is drawn, or how router and shared expert begin; `Upcycling` has these as fields, our choices as defaults.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmx.core import config as configs
from lmx.core.types import Array, Params
from lmx.model.config import BlockConfig, DecoderConfig, FFNConfig, MoEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upcycling:
    """What is drawn at random when experts are made.

    Attributes:
      redrawn: share of every routed expert that is drawn anew (0.5); 0 = none.
      unit: "columns": whole units of the intermediate axis (a column of gate and up and a row of down); "elements": single weights.
      shuffled: permute the columns of each copy; otherwise experts are neighbouring columns.
      std: standard deviation of what is drawn; None = that of the dense kernel in the same layer.
      router_std: standard deviation of the router's and the shared gate's weights.
    """

    redrawn: float = 0.5
    unit: Literal["columns", "elements"] = "columns"
    shuffled: bool = True
    std: float | None = None
    router_std: float = 0.02

    def __post_init__(self) -> None:
        if not 0.0 <= self.redrawn <= 1.0:
            raise ValueError(f"redrawn={self.redrawn}, a share of each expert, must lie in [0, 1]")
        if self.unit not in ("columns", "elements"):
            raise ValueError(f"unit={self.unit!r} is not one of 'columns', 'elements'")


def copies(ffn_dim: int, experts: int, expert_dim: int) -> tuple[int, int]:
    """How many copies of a dense FFN make the experts, and how many columns are then left over.

    Args:
      ffn_dim: F of the dense FFN.
      experts: E.
      expert_dim: width of one expert.

    Returns:
      (copies, dropped columns): (9, 6656) from Qwen2-7B to Qwen2-57B-A14B.
    """
    needed = experts * expert_dim
    count = -(-needed // ffn_dim)
    return count, count * ffn_dim - needed


def check_upcycling(dense: DecoderConfig, target: DecoderConfig) -> None:
    """Raises ValueError when the target is not the dense model with mixtures of experts in the place of its FFNs."""
    if len(dense.layer_pattern) != len(target.layer_pattern):
        raise ValueError(
            f"the target's layer pattern has {len(target.layer_pattern)} blocks and the dense model's {len(dense.layer_pattern)}"
        )
    for place, (old, new) in enumerate(zip(dense.layer_pattern, target.layer_pattern, strict=True)):
        _check_block(place, old, new)
    pattern = tuple(
        dataclasses.replace(new, ffn=old.ffn) for old, new in zip(dense.layer_pattern, target.layer_pattern, strict=True)
    )
    same = dataclasses.replace(target, layer_pattern=pattern, vocab_size=dense.vocab_size, init_std=dense.init_std)
    if same != dense:
        difference = configs.diff(dense, same).splitlines()[0]
        raise ValueError(f"upcycling changes FFNs only, but the target also changes {difference}")
    if target.vocab_size > dense.vocab_size:
        raise ValueError(
            f"the target's vocab_size={target.vocab_size} exceeds the dense model's {dense.vocab_size}; "
            "rows can be dropped, not made"
        )


def upcycle(params: Params, dense: DecoderConfig, target: DecoderConfig, key: Array, settings: Upcycling = Upcycling()) -> Params:
    """Parameters of the mixture of experts; a pure function, so `jax.eval_shape` tells its sizes without making any.

    Attention, norms and tables are the dense model's, tables without the rows beyond the target's vocabulary (padding).

    Args:
      params: the dense model's.
      dense: its architecture.
      target: the mixture's, checked by `check_upcycling`.
      key: jax.random key.
      settings: what is drawn.
    """
    blocks = {}
    for place, block in enumerate(target.layer_pattern):
        source = params["blocks"][str(place)]
        if not isinstance(block.ffn, MoEConfig):
            blocks[str(place)] = source
            continue
        repeats = jnp.arange(dense.num_repeats)

        def layer(item: tuple[Params, Array], place: int = place, moe: MoEConfig = block.ffn) -> Params:
            return upcycle_layer(item[0], moe, layer_key(key, place, item[1]), settings)

        blocks[str(place)] = {**source, "ffn": jax.lax.map(layer, (source["ffn"], repeats))}
    tables = {name: {"table": params[name]["table"][: target.vocab_size]} for name in ("embed", "head") if name in params}
    return {**params, **tables, "blocks": blocks}


def layer_key(key: Array, place: int, repeat: Array | int) -> Array:
    """The key of one layer, the same whether layers are made together or one by one."""
    return jax.random.fold_in(jax.random.fold_in(key, place), repeat)


def upcycle_layer(ffn: Params, moe: MoEConfig, key: Array, settings: Upcycling = Upcycling()) -> Params:
    """The mixture of experts of one layer.

    Args:
      ffn: the dense FFN's kernels: gate and up [D, F], down [F, D].
      moe: the mixture.
      key: the layer's, see `layer_key`.
      settings: what is drawn.

    Returns:
      Parameters of `lmx.model.moe.MoE`, in the dtypes of the kernels.
    """
    routed, redraw, shared, router, gate = jax.random.split(key, 5)
    kernels = {name: ffn[name]["kernel"] for name in ("gate", "up", "down")}
    ids = column_ids(routed, kernels["gate"].shape[1], moe.num_experts, moe.expert.ffn_dim, settings.shuffled)  # [E, f]
    experts = _redrawn(_columns(kernels, ids), kernels, redraw, settings)
    model_dim, dtype = kernels["gate"].shape[0], kernels["gate"].dtype
    made: dict[str, Any] = {
        "router": {"kernel": _normal(router, (model_dim, moe.num_experts), settings.router_std, dtype)},
        "experts": experts,
    }
    if moe.shared is not None:
        ids = column_ids(shared, kernels["gate"].shape[1], 1, moe.shared.ffn_dim, settings.shuffled)
        made["shared"] = {name: {"kernel": kernel[0]} for name, kernel in _columns(kernels, ids).items()}
        made["shared_gate"] = {"kernel": _normal(gate, (model_dim, 1), settings.router_std, dtype)}
    return made


def column_ids(key: Array, ffn_dim: int, experts: int, expert_dim: int, shuffled: bool = True) -> Array:
    """[experts, expert_dim] int32, the dense column that each column of each expert is a copy of."""
    count, _ = copies(ffn_dim, experts, expert_dim)
    keys = jax.random.split(key, count)
    order = jax.vmap(lambda key: jax.random.permutation(key, ffn_dim))(keys) if shuffled else jnp.tile(jnp.arange(ffn_dim), count)
    return order.reshape(-1)[: experts * expert_dim].reshape(experts, expert_dim)


def _columns(kernels: dict[str, Array], ids: Array) -> dict[str, Array]:
    """Gate and up [E, D, f] and down [E, f, D] of the columns in ids, [E, f]."""
    wide = {name: jnp.moveaxis(jnp.take(kernels[name], ids, axis=1), 1, 0) for name in ("gate", "up")}
    return {**wide, "down": jnp.take(kernels["down"], ids, axis=0)}


def _redrawn(experts: dict[str, Array], dense: dict[str, Array], key: Array, settings: Upcycling) -> dict[str, Array]:
    """The experts with a share of each drawn anew."""
    if not settings.redrawn:
        return experts
    choice, *keys = jax.random.split(key, 4)
    number, _, width = experts["gate"].shape
    fresh_columns = _exact_share(choice, (number, width), settings.redrawn)
    found = {}
    for name, kernel_key in zip(("gate", "up", "down"), keys, strict=True):
        values, which = jax.random.split(kernel_key)
        std = jnp.std(dense[name].astype(jnp.float32)) if settings.std is None else settings.std
        drawn = _normal(values, experts[name].shape, std, experts[name].dtype)
        if settings.unit == "elements":
            fresh = jax.random.bernoulli(which, settings.redrawn, experts[name].shape)
        else:
            fresh = jnp.expand_dims(fresh_columns, 2 if name == "down" else 1)
        found[name] = jnp.where(fresh, drawn, experts[name])
    return found


def _exact_share(key: Array, shape: tuple[int, int], share: float) -> Array:
    """[E, f] bool, in each row exactly round(share * f) of them True."""
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=1), axis=1)
    return ranks < round(share * shape[1])


def _normal(key: Array, shape: tuple[int, ...], std: Array | float, dtype: Any) -> Array:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def _check_block(place: int, old: BlockConfig, new: BlockConfig) -> None:
    """Raises ValueError when a block of the target can't be made of the dense one."""
    if isinstance(old.ffn, MoEConfig):
        raise ValueError(f"layer_pattern.{place} of the source is a mixture of experts already; upcycling starts from dense models")
    if isinstance(new.ffn, FFNConfig):
        return
    for name, ffn in (("expert", new.ffn.expert), ("shared", new.ffn.shared)):
        if ffn is not None and ffn.activation is not old.ffn.activation:
            raise ValueError(
                f"layer_pattern.{place}.ffn.{name} has another activation than the dense FFN; its columns would mean nothing there"
            )
