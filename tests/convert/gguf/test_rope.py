"""Rotary scalings to and from GGUF keys."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.convert.gguf.keys import Keys
from lmx.convert.gguf.rope import divisors_of, read_rope, write_rope
from lmx.convert.source import ConversionError
from lmx.model import rope
from lmx.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def _read(values, divisors=None, head_dim=128, max_length=131_072) -> RopeConfig:
    stored = {f"llama.{name}": float(np.float32(value)) if isinstance(value, float) else value for name, value in values.items()}
    return read_rope(Keys(stored, "llama", Path("m.gguf")), head_dim, max_length, divisors)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(factor=4.0),
        Llama3Scaling(),
        Llama3Scaling(factor=32.0),
        Llama3Scaling(factor=6.0, low_frequency_factor=1.5, high_frequency_factor=3.0, original_length=2048),
        YarnScaling(factor=4.0, original_length=32_768),
        YarnScaling(factor=8.0, original_length=4_096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25),
    ],
)
def test_every_scaling_comes_back_the_same(scaling):
    config = RopeConfig(theta=500_000.0, scaling=scaling)
    keys, divisors = write_rope(config, 128)
    assert _read(keys, divisors) == config


def test_llama_3_divisors_follow_the_formula_of_the_converter():
    """As llama.cpp's converter computes them, in float32."""
    frequencies = 1.0 / (np.float32(500_000.0) ** (np.arange(0, 128, 2, dtype=np.float32) / 128))
    divisors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        divisors.append(1.0 if wavelength < 8192 / 4 else 8.0 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    expected = np.array(divisors, np.float32)
    np.testing.assert_allclose(divisors_of(Llama3Scaling(), 500_000.0, 128), expected, rtol=2e-6)
    assert _read({"rope.freq_base": 500_000.0}, expected).scaling == Llama3Scaling()


@given(factor=st.floats(1.5, 64), low=st.floats(0.5, 2), gap=st.floats(1, 8))
def test_any_setting_of_the_formula_is_recognised_by_its_frequencies(factor, low, gap):
    scaling = Llama3Scaling(factor=factor, low_frequency_factor=low, high_frequency_factor=low + gap, original_length=8192)
    divisors = divisors_of(scaling, 500_000.0, 128).astype(np.float32)
    found = _read({"rope.freq_base": 500_000.0}, divisors)
    expected = rope.frequencies(128, RopeConfig(theta=500_000.0, scaling=scaling))
    np.testing.assert_allclose(rope.frequencies(128, found), expected, rtol=3e-5)


def test_divisors_that_are_all_one_mean_no_scaling_and_all_equal_a_linear_one():
    assert _read({}, np.ones(64, np.float32)).scaling is None
    assert _read({}, np.full(64, 4, np.float32)).scaling == LinearScaling(factor=4.0)


@pytest.mark.parametrize(
    ("values", "divisors", "sentence"),
    [
        ({"rope.scaling.type": "longrope"}, None, "lmx implements none, linear and yarn"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.2},
            None,
            "for the type 'yarn' only",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_ext_factor": 0.5},
            None,
            "does not implement",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.1},
            None,
            "does not implement",
        ),
        ({"rope.dimension_count": 64}, None, "lmx rotates whole heads"),
        ({"rope.freq_base": float("nan")}, None, "not a positive number"),
        ({"rope.freq_base": -1.0}, None, "not a positive number"),
        ({"rope.freq_base": True}, None, "not a positive number"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, np.full(64, 2, np.float32), "both scale"),
        ({}, np.ones(63, np.float32), "no list of 64 divisors"),
        ({}, np.full(64, np.nan, np.float32), "no list of 64 divisors"),
        ({}, np.linspace(1, 9, 64).astype(np.float32), "no setting of Llama 3.1's formula"),
    ],
)
def test_scalings_that_lmx_lacks_are_refused(values, divisors, sentence):
    with pytest.raises(ConversionError, match=sentence):
        _read(values, divisors)


def test_the_converters_whole_attention_factor_is_taken_as_the_whole():
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 4096}
    assert _read(keys | {"rope.scaling.yarn_attn_factor": 1.5}).scaling.attention_factor == 1.5
    assert _read(keys | {"rope.scaling.yarn_attn_factor": 0.1 * np.log(4.0) + 1}).scaling.attention_factor is None
    assert _read(keys | {"rope.scaling.attn_factor": 1.5}).scaling.attention_factor == pytest.approx(1.5 * (0.1 * np.log(4) + 1))
