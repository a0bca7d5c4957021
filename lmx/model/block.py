"""One decoder layer, and one repeat of the layer pattern."""

from flax import linen as nn

from lmx.core.types import Array
from lmx.model.attention import KV, Attention, BlockInputs
from lmx.model.config import BlockConfig, DecoderConfig, MoEConfig
from lmx.model.execution import Execution
from lmx.model.ffn import FFN
from lmx.model.moe import LayerRouting, MoE
from lmx.model.norm import RMSNorm
from lmx.model.remat import rematerialized

Carry = tuple[Array, tuple[KV, ...] | None]  # activations [B, T, D]; cached keys and values of each place in the pattern


class Block(nn.Module):
    """`x + norm(attention(norm(x)))`, then the same with the FFN; the norms on the outputs where `post_norms` says so.

    Attributes:
      config: the layer.
      model_dim: D.
      execution: how to run.
      init_std: standard deviation at init, None = fan-in.
    """

    config: BlockConfig
    model_dim: int
    execution: Execution
    init_std: float | None = None

    @nn.compact
    def __call__(self, x: Array, inputs: BlockInputs, kv: KV | None, layer: Array) -> tuple[Array, KV | None, LayerRouting | None]:
        """Activations [B, T, D] after the layer, its place's cache, and its router's statistics if it has one."""
        attention = Attention(self.config.attention, self.model_dim, self.execution, self.init_std, name="attention")
        y, kv = attention(self._norm("attention_norm", x), inputs, kv, layer)
        x = x + self._post_norm("attention_post_norm", y)
        y, routing = self._ffn(self._norm("ffn_norm", x), inputs)
        x = x + self._post_norm("ffn_post_norm", y)
        return self.execution.constrain(x, ("batch", "length", "activation_embed")), kv, routing

    def _ffn(self, x: Array, inputs: BlockInputs) -> tuple[Array, LayerRouting | None]:
        config = self.config.ffn
        if isinstance(config, MoEConfig):
            return MoE(config, self.model_dim, self.execution, self.init_std, name="ffn")(x, inputs.segment_ids)
        return FFN(config, self.model_dim, self.execution, self.init_std, name="ffn")(x), None

    def _norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.config.norm, "embed", self.execution.precision, name=name)(x)

    def _post_norm(self, name: str, y: Array) -> Array:
        return self._norm(name, y) if self.config.post_norms else y


class Repeat(nn.Module):
    """One repeat of the layer pattern, the body of the scan over depth; block i of the pattern is named "i".

    Attributes:
      config: the decoder's.
      execution: how to run.
    """

    config: DecoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, carry: Carry, layer: Array, inputs: tuple[BlockInputs, ...]) -> tuple[Carry, tuple[LayerRouting, ...]]:
        """The carry after the repeat, and the statistics of its MoE blocks.

        Args:
          carry: activations and caches.
          layer: [] int32, which repeat this is.
          inputs: for each block of the pattern.
        """
        x, caches = carry
        remat = self.execution.remat if caches is None else None
        block_class = rematerialized(Block, remat, in_loop=self.execution.unroll < self.config.num_repeats)
        written, routings = [], []
        for place, (block, block_inputs) in enumerate(zip(self.config.layer_pattern, inputs, strict=True)):
            kv = None if caches is None else caches[place]
            module = block_class(block, self.config.model_dim, self.execution, self.config.init_std, name=str(place))
            x, kv, routing = module(x, block_inputs, kv, layer)
            written.append(kv)
            routings += [] if routing is None else [routing]
        return (x, None if caches is None else tuple(written)), tuple(routings)


def scan_layers(config: DecoderConfig, execution: Execution) -> nn.Module:
    """`Repeat` scanned over its R repeats, parameters stacked on a leading axis named "layers"; call it inside a compact method."""
    scanned = nn.scan(
        Repeat,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=config.num_repeats,
        unroll=min(execution.unroll, config.num_repeats),
        # Nothing is broadcast out of the loop; the check would cost a trace and forbid effects (a debug callback in a kernel).
        check_constancy_invariants=False,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, execution, name="blocks")
