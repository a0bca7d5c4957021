"""The 8-bit cache: its rounding error, and what it does to a model's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lmx.model import cache as kv_cache

LENGTH = 24


@given(arrays.arrays(np.float32, (3, 2, 8), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_rounding_is_at_most_half_a_step_of_the_largest_magnitude(x):
    values, scales = kv_cache.quantize(jnp.asarray(x))
    back = np.asarray(kv_cache.dequantize(values, scales, jnp.float32), np.float64)
    step = np.abs(x).max(-1, keepdims=True).astype(np.float64) / 127
    assert values.dtype == jnp.int8 and np.abs(np.asarray(values, int)).max(initial=0) <= 127
    assert (np.abs(back - x) <= 0.5001 * step + 1e-37).all()  # denormal scales flush to zero


def columns(batch, start, stop):
    return jax.tree.map(lambda leaf: leaf[:, start:stop], batch)


def _decode(family, batch, kv_dtype, cuts):
    cache, hidden = family.model.init_cache(2, LENGTH, kv_dtype), []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        outputs, cache = family.decode(family.params, columns(batch, start, stop), cache)
        hidden.append(outputs.hidden)
    return jnp.concatenate(hidden, axis=1), cache


@pytest.mark.parametrize("name", ["gemma2", "qwen2_moe"])
def test_outputs_stay_close_to_those_of_the_plain_cache(built, make_batch, name):
    family, batch = built(name), make_batch([[LENGTH], [LENGTH]], LENGTH)
    cuts = [0, 12, *range(13, LENGTH + 1)]
    plain, _ = _decode(family, batch, None, cuts)
    rounded, cache = _decode(family, batch, "int8", cuts)
    error = np.linalg.norm(rounded - plain) / np.linalg.norm(plain)
    assert 0 < error < 0.02
    assert {leaf.dtype for layer in cache.layers for leaf in (layer.k.values, layer.v.values)} == {jnp.dtype(jnp.int8)}


def test_how_a_prompt_is_cut_into_calls_changes_nothing(built, make_batch):
    gemma, batch = built("gemma2"), make_batch([[LENGTH], [LENGTH]], LENGTH)  # rings and full layers
    whole, _ = _decode(gemma, batch, "int8", [0, 12, 24])
    pieces, _ = _decode(gemma, batch, "int8", [0, 8, 16, 24])
    np.testing.assert_allclose(whole, pieces, atol=2e-3)  # a float32 difference in the last bit can move a value by one step


def test_an_unknown_cache_dtype_is_refused(built):
    with pytest.raises(ValueError, match=r"kv_dtype='int4' is not one of None .*'int8'"):
        built("llama3").model.init_cache(1, 8, "int4")
