"""Rotary embeddings in GGUF: scalings by key, and Llama 3.1's as a tensor of divisors that has to be recognised.

YaRN: llama.cpp multiplies cosine and sine by (0.1 ln(factor) + 1) times `rope.scaling.attn_factor`, which is 1 where it is absent.
Its converter writes Hugging Face's `attention_factor`, the whole multiplier, as `rope.scaling.yarn_attn_factor`, and llama.cpp does
not use it for the families here; lmx takes it for what the original model says.
"""

import math

import numpy as np

from lmx.convert.gguf.keys import Keys
from lmx.model import rope
from lmx.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

Scaling = LinearScaling | Llama3Scaling | YarnScaling
_TOLERANCE = 1e-5  # the divisors were computed in float32 from float32 frequencies
_FACTORS = (8.0, 32.0, 2.0, 4.0, 16.0, 64.0)  # tried where no pair is slow enough to carry the whole factor


def read_rope(keys: Keys, head_dim: int, max_length: int, divisors: np.ndarray | None) -> RopeConfig:
    """The rotary embedding that a file describes.

    Args:
      keys: its hyper-parameters.
      head_dim: H.
      max_length: of the model, what YaRN's original length is where the file names none.
      divisors: [H / 2] tensor of frequency divisors; None = the file has none.

    Raises:
      ConversionError: a scaling that lmx does not implement, or divisors that follow no formula it knows.
    """
    theta = keys.real("rope.freq_base", 10_000.0)
    rotated = keys.whole("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise keys.error("rope.dimension_count", f"is {rotated}, but lmx rotates whole heads, of {head_dim} here")
    scaling = _read_scaling(keys, max_length)
    keys.ignore("rope.scaling.finetuned")
    if divisors is None:
        return RopeConfig(theta=theta, scaling=scaling)
    if scaling is not None:
        raise keys.error("rope.scaling", "and rope_freqs.weight both scale the rotary frequencies; lmx takes one of them")
    return RopeConfig(
        theta=theta, scaling=_recognise(keys, divisors, theta, head_dim, keys.whole("rope.scaling.original_context_length", 8192))
    )


def _read_scaling(keys: Keys, max_length: int) -> Scaling | None:
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0))
    original = keys.whole("rope.scaling.original_context_length", max_length)
    keys.neutral("rope.scaling.yarn_ext_factor", 1.0)
    keys.neutral("rope.scaling.yarn_log_multiplier", 0.0)
    multiplier, absolute = keys.real("rope.scaling.attn_factor", 1.0), keys.get("rope.scaling.yarn_attn_factor")
    fast, slow = keys.real("rope.scaling.yarn_beta_fast", 32.0), keys.real("rope.scaling.yarn_beta_slow", 1.0)
    if kind == "yarn":
        default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        attention = multiplier * default if absolute is None else keys.real("rope.scaling.yarn_attn_factor")
        return YarnScaling(
            factor=factor,
            original_length=original,
            beta_fast=fast,
            beta_slow=slow,
            attention_factor=None if math.isclose(attention, default, rel_tol=1e-6) else _short(attention, 7),
        )
    if multiplier != 1.0:
        raise keys.error(
            "rope.scaling.attn_factor", f"is {multiplier}, which lmx implements for the type 'yarn' only, not {kind!r}"
        )
    if kind == "linear":
        return None if factor == 1.0 else LinearScaling(factor=factor)
    if kind != "none":
        raise keys.error("rope.scaling.type", f"is {kind!r}; lmx implements none, linear and yarn")
    return None


def _recognise(keys: Keys, divisors: np.ndarray, theta: float, head_dim: int, original_length: int) -> Scaling | None:
    """The scaling whose divisors these are."""
    exact = divisors.astype(np.float64)
    if exact.shape != (head_dim // 2,) or not np.isfinite(exact).all() or (exact < 1 - _TOLERANCE).any():
        raise keys.error(
            "rope", f"comes with a rope_freqs.weight of shape {exact.shape} that is no list of {head_dim // 2} divisors above 1"
        )
    if np.allclose(exact, exact[0], rtol=_TOLERANCE):
        return None if math.isclose(exact[0], 1.0, rel_tol=_TOLERANCE) else LinearScaling(factor=_short(exact[0]))
    for candidate in _candidates(exact, theta, original_length):
        if np.allclose(divisors_of(candidate, theta, head_dim), exact, rtol=_TOLERANCE, atol=0):
            return candidate
    raise keys.error("rope", "comes with a rope_freqs.weight that no setting of Llama 3.1's formula gives; lmx knows no other")


def _candidates(exact: np.ndarray, theta: float, original_length: int) -> list[Llama3Scaling]:
    """Settings of Llama 3.1's formula that may have given the divisors: the published ones first, then a fit."""
    factors = dict.fromkeys((_short(exact.max()), *_FACTORS))
    lengths = dict.fromkeys((original_length, 8192))
    found = [Llama3Scaling(factor=factor, original_length=length) for factor in factors for length in lengths]
    factor = float(exact.max())
    between = (exact > 1 + 10 * _TOLERANCE) & (exact < factor * (1 - 10 * _TOLERANCE))
    if between.sum() < 2:
        return found
    # Between the ends 1 / divisor = (1 - s) / factor + s, where s = (turns - low) / (high - low) is linear in the frequency.
    share = (1 / exact[between] - 1 / factor) / (1 - 1 / factor)
    turns = original_length * rope.frequencies(2 * len(exact), RopeConfig(theta=theta))[between] / (2 * np.pi)
    slope, offset = map(float, np.polyfit(turns, share, 1))
    if slope <= 0 or offset >= 0:
        return found
    low, high = -offset / slope, (1 - offset) / slope
    fitted = Llama3Scaling(factor=factor, low_frequency_factor=low, high_frequency_factor=high, original_length=original_length)
    rounded = Llama3Scaling(
        factor=_short(factor),
        low_frequency_factor=_short(low),
        high_frequency_factor=_short(high),
        original_length=original_length,
    )
    return [*found, rounded, fitted]


def divisors_of(scaling: Llama3Scaling, theta: float, head_dim: int) -> np.ndarray:
    """[H / 2] float64, what each frequency is divided by."""
    plain = rope.frequencies(head_dim, RopeConfig(theta=theta))
    return plain / rope.llama3_scaled(plain, scaling)


def write_rope(config: RopeConfig, head_dim: int) -> tuple[dict[str, float | int | str], np.ndarray | None]:
    """Keys below the architecture's name, and the [H / 2] float32 divisors where the scaling is Llama 3.1's."""
    keys: dict[str, float | int | str] = {"rope.dimension_count": head_dim, "rope.freq_base": float(config.theta)}
    match config.scaling:
        case LinearScaling(factor=factor):
            return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}, None
        case YarnScaling() as yarn:
            keys |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(yarn.factor),
                "rope.scaling.original_context_length": yarn.original_length,
                "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
                "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
            }
            if yarn.attention_factor is not None:
                keys["rope.scaling.attn_factor"] = yarn.attention_factor / (0.1 * math.log(yarn.factor) + 1.0)
            return keys, None
        case Llama3Scaling() as llama3:  # llama.cpp uses the divisors alone; the length is for readers that want the formula back
            keys["rope.scaling.original_context_length"] = llama3.original_length
            return keys, divisors_of(llama3, config.theta, head_dim).astype(np.float32)
    return keys, None


def _short(value: float, digits: int = 6) -> float:
    """The number to the digits that what was computed in float32 is good for."""
    return float(f"{value:.{digits}g}")
