"""A decoder's context: its RoPE and longest sequence, which can change while every parameter stays as it is."""

import dataclasses

from lmx.model.config import BlockConfig, DecoderConfig, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def with_context(
    config: DecoderConfig,
    *,
    rope_theta: float | None = None,
    rope_scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None,
    max_length: int | None = None,
) -> DecoderConfig:
    """The same decoder with another RoPE in every layer, or another longest sequence; the parameters fit both.

    Args:
      config: a decoder.
      rope_theta: base; None = kept.
      rope_scaling: of the frequencies; None = kept.
      max_length: in tokens; None = kept.
    """

    def block(old: BlockConfig) -> BlockConfig:
        rope = old.attention.rope
        rope = RopeConfig(
            theta=rope.theta if rope_theta is None else rope_theta,
            scaling=rope.scaling if rope_scaling is None else rope_scaling,
        )
        return dataclasses.replace(old, attention=dataclasses.replace(old.attention, rope=rope))

    return dataclasses.replace(
        config,
        layer_pattern=tuple(block(old) for old in config.layer_pattern),
        max_length=config.max_length if max_length is None else max_length,
    )


def same_but_context(first: DecoderConfig, second: DecoderConfig) -> bool:
    """Whether two decoders differ in nothing but RoPE (base and scaling) and longest sequence."""
    return _without_context(first) == _without_context(second)


def _without_context(config: DecoderConfig) -> DecoderConfig:
    rope = RopeConfig(theta=1.0)
    blocks = (
        dataclasses.replace(block, attention=dataclasses.replace(block.attention, rope=rope)) for block in config.layer_pattern
    )
    return dataclasses.replace(config, layer_pattern=tuple(blocks), max_length=1)
