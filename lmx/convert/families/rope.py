"""RoPE as `config.json` states it, in both generations: `rope_theta` with `rope_scaling`, and `rope_parameters`."""

import dataclasses
import math
from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.source import ConversionError
from lmx.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

DEFAULT_THETA = 10_000.0
_TYPES = ("default", "linear", "llama3", "yarn")


def read_rope(fields: Fields, max_length: int) -> RopeConfig:
    """The rotary embedding that a config asks for.

    Args:
      fields: the whole config.
      max_length: its max_position_embeddings, the trained length where a scaling states none.

    Raises:
      ConversionError: a variant that lmx does not implement, or two statements that contradict each other.
    """
    fields.refuse("partial_rotary_factor", "lmx rotates whole heads", unless=(None, 1.0, 1))
    theta = fields.optional_number("rope_theta")
    default_original = fields.size("original_max_position_embeddings", max_length)
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        stated = fields.raw(name)
        if stated is None or stated == {}:
            continue
        if not isinstance(stated, dict):
            fields.fail(f"says {name}={str(stated)[:80]}; an object was expected")
        found.append(_read(Fields(stated, f"{name} of {fields.where}"), theta or DEFAULT_THETA, default_original, max_length))
    if not found:
        return RopeConfig(theta=theta or DEFAULT_THETA)
    if found[0] != found[-1]:
        fields.fail(f"contradicts itself: rope_parameters says {found[0]}, rope_scaling says {found[-1]}; remove one of them")
    if theta is not None and found[0].theta != theta:
        fields.fail(f"contradicts itself: rope_theta={theta:g}, but rope_parameters says {found[0].theta:g}; remove one of them")
    return found[0]


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The fields of both generations."""
    scaling = _write_scaling(rope.scaling)
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})},
    }


def _read(fields: Fields, theta: float, original: int, max_length: int) -> RopeConfig:
    if any(isinstance(value, dict) for value in fields.values.values()):
        fields.fail("gives each kind of layer its own RoPE, which transformers does not read for this family")
    fields.refuse("partial_rotary_factor", "lmx rotates whole heads", unless=(None, 1.0, 1))
    theta = fields.number("rope_theta", theta)
    kind = fields.choice("rope_type", fields.raw("type", "default"), _TYPES)
    try:
        scaling = _read_scaling(fields, kind, original, max_length)
    except ConversionError:
        raise
    except ValueError as error:
        fields.fail(f"is not valid: {error}")
    for name in fields.values.keys() - fields.used:
        if fields.has(name):
            fields.fail(f"has the field {name!r}, which does not belong to the type {kind!r}")
    return RopeConfig(theta=theta, scaling=scaling)


def _read_scaling(fields: Fields, kind: str, original: int, max_length: int) -> LinearScaling | Llama3Scaling | YarnScaling | None:
    if kind == "linear":
        return LinearScaling(factor=fields.number("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=fields.number("factor"),
            low_frequency_factor=fields.number("low_freq_factor"),
            high_frequency_factor=fields.number("high_freq_factor"),
            original_length=fields.size("original_max_position_embeddings", original),
        )
    if kind == "yarn":
        return _read_yarn(fields, original, max_length)
    return None


def _read_yarn(fields: Fields, original: int, max_length: int) -> YarnScaling:
    original = fields.size("original_max_position_embeddings", original)
    factor = fields.number("factor", max_length / original)
    attention_factor = fields.optional_number("attention_factor")
    mscale, mscale_all = fields.optional_number("mscale"), fields.optional_number("mscale_all_dim")
    if attention_factor is None and mscale is not None and mscale_all is not None:
        attention_factor = _temperature(factor, mscale) / _temperature(factor, mscale_all)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=fields.flag("truncate", True),
    )


def _temperature(factor: float, mscale: float) -> float:
    """DeepSeek's generalisation of YaRN's temperature."""
    return 0.1 * mscale * math.log(factor) + 1.0


def _write_scaling(scaling: LinearScaling | Llama3Scaling | YarnScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    names = {"original_length": "original_max_position_embeddings"}
    stated = {names.get(name, name): value for name, value in dataclasses.asdict(scaling).items() if value is not None}
    if scaling.truncate:
        del stated["truncate"]  # the default, and a key that older versions warn of
    return {"rope_type": "yarn", **stated}
