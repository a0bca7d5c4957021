"""What the blocks of the layer pattern read besides activations: positions, rotations, cache plans."""

from lmx.core.types import TokenBatch
from lmx.model import dual_chunk, rope
from lmx.model.attention import BlockInputs
from lmx.model.cache import Append
from lmx.model.config import AttentionConfig, DecoderConfig


def block_inputs(config: DecoderConfig, batch: TokenBatch, plans: tuple[Append | None, ...]) -> tuple[BlockInputs, ...]:
    """The inputs of each block of the pattern, the same at every repeat; the rotations are made once, outside the scan."""
    return tuple(_attention_inputs(block.attention, batch, plan) for block, plan in zip(config.layer_pattern, plans, strict=True))


def _attention_inputs(config: AttentionConfig, batch: TokenBatch, plan: Append | None) -> BlockInputs:
    chunks = config.dual_chunk
    if chunks is None:
        cos, sin = rope.rotation(batch.positions, config.head_dim, config.rope)
        return BlockInputs(batch.positions, batch.segment_ids, cos, sin, plan)
    cos, sin = dual_chunk.key_rotation(batch.positions, config, chunks)
    parts = dual_chunk.parts(batch.positions, batch.positions if plan is None else plan.positions, config, chunks)
    return BlockInputs(batch.positions, batch.segment_ids, cos, sin, plan, parts)
