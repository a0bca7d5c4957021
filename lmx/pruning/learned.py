"""Learned masks on the width of FFNs: a weight in [0, 1] for each unit, trained with the model, of which the top k stay.

The masks stand beside the model's parameters under the key "masks": scores, and a clock that counts the updates made, so that
temperature and k follow their schedules in evaluations too. A mask never enters the model's code: `W_down (w * h)` is the same
model with the rows of W_down multiplied by w.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmx.core.types import Array, Outputs, Params, TokenBatch
from lmx.model.config import DecoderConfig, FFNConfig
from lmx.model.decoder import Model
from lmx.optim.layout import Layout
from lmx.optim.optimizers import Optimizer
from lmx.pruning.choose import highest
from lmx.pruning.cut import Keep, cut
from lmx.pruning.soft_top_k import soft_top_k

MASKS, SCORES, CLOCK = "masks", "scores", "clock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """How masks become hard.

    Attributes:
      first_eps: temperature at the start.
      last_eps: and at the end; geometric between.
      anneal: share of the run over which k falls, on a straight line, from all units but one to the target; 0 = the target from
        the start, which is what keeps the sum of the masks at the size of the child all along.
      init_std: standard deviation of the scores at the start, around 0.

    Reference: Gunter et al. (2024), arXiv:2407.21075 (AFM), prunes FFN widths by soft top-k masks with the language model's loss
      alone; all these numbers are our choice, the report gives none.
    """

    first_eps: float = 1.0
    last_eps: float = 0.02
    anneal: float = 0.0
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if not self.first_eps >= self.last_eps > 0:
            raise ValueError(f"first_eps={self.first_eps} must be at least last_eps={self.last_eps}, and both above 0")
        if not 0 <= self.anneal < 1:
            raise ValueError(f"anneal={self.anneal}, a share of the run, must lie in [0, 1)")

    def eps(self, progress: Array | float) -> Array:
        """Temperature after a share of the run, in [0, 1]."""
        return self.first_eps * (self.last_eps / self.first_eps) ** jnp.clip(progress, 0.0, 1.0)

    def kept(self, progress: Array | float, full: int, target: int) -> Array:
        """k after a share of the run."""
        if not self.anneal:
            return jnp.asarray(float(target))
        return target + (full - 1 - target) * jnp.clip(1 - progress / self.anneal, 0.0, 1.0)


def masked_model(model: Model, target: DecoderConfig, schedule: MaskSchedule, *, steps: int, frozen: bool = False) -> Model:
    """The model with masks among its parameters: `{**params, "masks": {"scores": {place: [R, F]}, "clock": []}}`.

    Args:
      model: the parent.
      target: the child, of which only the FFN widths differ.
      schedule: of temperature and k.
      steps: updates of the whole run.
      frozen: no gradient flows to the parent's own parameters.

    Returns:
      A model of the parent's config whose `apply` scales each FFN by its mask; it can't decode.
    """
    widths = pruned_widths(model.config, target)
    repeats = model.config.num_repeats

    def init(key: Array) -> Params:
        own, masks = jax.random.split(key)
        return with_masks(model.init(own), masks, widths, repeats, schedule)

    def apply(params: Params, batch: TokenBatch) -> Outputs:
        own = {name: value for name, value in params.items() if name != MASKS}
        own = jax.lax.stop_gradient(own) if frozen else own
        return model.apply(scaled(own, unit_weights(params[MASKS], widths, schedule, steps)), batch)

    def no_cache(*args: Any, **options: Any) -> Any:
        del args, options
        raise NotImplementedError("a model with masks is trained, not decoded from; cut it first")

    axes = {**model.axes, MASKS: {SCORES: {str(place): ("layers", None) for place in widths}, CLOCK: ()}}
    return Model(model.config, axes, init, apply, no_cache, no_cache)


def pruned_widths(source: DecoderConfig, target: DecoderConfig) -> dict[int, tuple[int, int]]:
    """Place of the layer pattern -> (F, F') where they differ.

    Raises:
      ValueError: the target differs in anything but narrower FFNs, or in nothing.
    """
    same = len(target.layer_pattern) == len(source.layer_pattern)
    if same:
        pairs = zip(target.layer_pattern, source.layer_pattern, strict=True)
        pattern = tuple(dataclasses.replace(block, ffn=old.ffn) for block, old in pairs)
        same = dataclasses.replace(target, layer_pattern=pattern) == source
    if not same:
        raise ValueError("masks are learned on the width of FFNs: the target must be the source with smaller ffn_dim")
    widths = {}
    for place, (old, new) in enumerate(zip(source.layer_pattern, target.layer_pattern, strict=True)):
        if old.ffn == new.ffn:
            continue
        if not isinstance(old.ffn, FFNConfig) or not isinstance(new.ffn, FFNConfig):
            raise ValueError(f"layer_pattern.{place} is a mixture of experts, whose widths are not pruned")
        if new.ffn.ffn_dim > old.ffn.ffn_dim or new.ffn != dataclasses.replace(old.ffn, ffn_dim=new.ffn.ffn_dim):
            raise ValueError(f"layer_pattern.{place}.ffn must be {old.ffn} with a smaller ffn_dim, but is {new.ffn}")
        widths[place] = (old.ffn.ffn_dim, new.ffn.ffn_dim)
    if not widths:
        raise ValueError("the target's FFNs are as wide as the source's: there is nothing to prune")
    return widths


def with_masks(params: Params, key: Array, widths: dict[int, tuple[int, int]], repeats: int, schedule: MaskSchedule) -> Params:
    """A parent's parameters with fresh masks beside them; scores and clock are float32 whatever the precision."""
    keys = jax.random.split(key, max(widths) + 1)
    scores = {
        str(place): schedule.init_std * jax.random.normal(keys[place], (repeats, full), jnp.float32)
        for place, (full, _) in widths.items()
    }
    return {**params, MASKS: {SCORES: scores, CLOCK: jnp.zeros((), jnp.float32)}}


def unit_weights(masks: Params, widths: dict[int, tuple[int, int]], schedule: MaskSchedule, steps: int) -> dict[int, Array]:
    """Place -> [R, F] float32, the weight of every FFN unit at the masks' clock."""
    progress = jax.lax.stop_gradient(masks[CLOCK]) / steps
    eps = schedule.eps(progress)
    return {
        place: soft_top_k(masks[SCORES][str(place)], schedule.kept(progress, full, target), eps)
        for place, (full, target) in widths.items()
    }


def scaled(params: Params, weights: dict[int, Array]) -> Params:
    """The parameters with the rows of each down projection multiplied by the weights of its units, [R, F]."""
    blocks = dict(params["blocks"])
    for place, weight in weights.items():
        block = blocks[str(place)]
        kernel = block["ffn"]["down"]["kernel"]  # [R, F, D]
        down = {"kernel": (kernel * weight[..., None]).astype(kernel.dtype)}
        blocks[str(place)] = block | {"ffn": block["ffn"] | {"down": down}}
    return {**params, "blocks": blocks}


def harden(params: Params, source: DecoderConfig, target: DecoderConfig, schedule: MaskSchedule) -> Params:
    """The child: in each layer the units of the k highest scores, their rows of the down projection times their last weights.

    Args:
      params: as the masked model's.
      source: the parent.
      target: the child.
      schedule: its last temperature is used.
    """
    widths = pruned_widths(source, target)
    masks = params[MASKS] | {CLOCK: jnp.ones((), jnp.float32)}
    weights = unit_weights(masks, widths, schedule, steps=1)
    places = range(len(source.layer_pattern))
    ids = tuple(highest(np.asarray(masks[SCORES][str(p)]), widths[p][1]) if p in widths else None for p in places)
    own = {name: value for name, value in params.items() if name != MASKS}
    return cut(scaled(own, weights), source, Keep(ffn=ids))


def softness(masks: Params, widths: dict[int, tuple[int, int]], schedule: MaskSchedule, steps: int) -> Array:
    """[] float32, mean over layers of `sum w (1 - w) / k`: 0 when every mask is hard."""
    weights = unit_weights(masks, widths, schedule, steps)
    shares = [jnp.mean(jnp.sum(w * (1 - w), axis=-1)) / widths[place][1] for place, w in weights.items()]
    return jnp.mean(jnp.stack(shares))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskOptimizer:
    """The model's optimizer, and Adam without decay on the scores; the clock goes up by 1 with every update.

    Attributes:
      model: of the parent's parameters, which see it as if no masks were there.
      multiplier: of the model's learning rate, for the scores.
      frozen: leave the parent's parameters as they are.
    """

    model: Optimizer
    multiplier: float = 10.0
    frozen: bool = False

    def build(self, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
        """As `Optimizer.build`."""
        rate = self.learning_rate(steps)
        scores = optax.adam(lambda count: self.multiplier * rate(count), b1=0.9, b2=0.95)
        parts = {
            "model": optax.set_to_zero() if self.frozen else self.model.build(steps, layout),
            SCORES: scores,
            CLOCK: optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates)),
        }
        return optax.multi_transform(parts, _labels)

    def learning_rate(self, steps: int) -> optax.Schedule:
        """As `Optimizer.learning_rate`: the model's."""
        return self.model.learning_rate(steps)


def _labels(params: Params) -> Params:
    def label(path: tuple, leaf: Any) -> str:
        del leaf
        return "model" if path[0].key != MASKS else path[1].key

    return jax.tree_util.tree_map_with_path(label, params)
