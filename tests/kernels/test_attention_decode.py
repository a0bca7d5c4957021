"""Attention of a few queries over a cache against the dense reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.kernels.attention import attention_with_lse


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(("window", "soft_cap", "scale"), [(None, None, None), (4, 2.0, 0.3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_few_queries_attend_as_the_reference_says(length, window, soft_cap, scale, dtype):
    random = np.random.default_rng(length)
    batch, keys, kv_heads, group, head_dim = 3, 11, 2, 3, 8
    q = jnp.asarray(random.normal(size=(batch, length, kv_heads * group, head_dim)), dtype)
    k, v = (jnp.asarray(random.normal(size=(batch, keys, kv_heads, head_dim)), dtype) for _ in range(2))
    positions = jnp.asarray([[7], [10], [0]]) + jnp.arange(length)
    ids = dict(
        positions=positions,
        segment_ids=jnp.ones((batch, length), int).at[1, 0].set(0),  # padding
        kv_positions=jnp.tile(jnp.arange(keys), (batch, 1)),
        kv_segment_ids=(jnp.arange(keys)[None] < jnp.asarray([[8], [11], [0]])).astype(int),  # the last row sees nothing
    )
    options = dict(window=window, soft_cap=soft_cap, scale=scale)
    out, lse = attention_with_lse(q, k, v, **ids, **options, implementation="decode")
    expected, expected_lse = attention_with_lse(q, k, v, **ids, **options, implementation="reference")
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-4 if dtype == jnp.float32 else 2e-2)
    assert not np.asarray(out[2]).any() and np.isfinite(lse).all()


def test_what_a_cache_holds_is_not_copied():
    batch, keys, kv_heads, head_dim = 2, 64, 4, 16
    entries = jax.ShapeDtypeStruct((batch, kv_heads, keys, head_dim), jnp.float32)
    ids = jnp.ones((batch, 1), int), jnp.ones((batch, keys), int)

    def attend(q, k, v):
        k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
        options = dict(positions=ids[0], segment_ids=ids[0], kv_positions=ids[1], kv_segment_ids=ids[1])
        return attention_with_lse(q, k, v, **options, implementation="decode")

    compiled = jax.jit(attend).lower(jax.ShapeDtypeStruct((batch, 1, 8, head_dim), jnp.float32), entries, entries).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 4 * batch * kv_heads * keys * head_dim  # less than the keys alone
