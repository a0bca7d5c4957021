"""Parts of attention put together by their log-sum-exps equal attention over all keys at once."""

import jax
import jax.numpy as jnp
import numpy as np

from lmx.kernels.attention import attention_with_lse, merge_parts

NO_KEY = float(jnp.finfo(jnp.float32).min)


def _inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (3 * jax.random.normal(key, (2, 9, heads, 8)) for key, heads in zip(keys, (4, 2, 2), strict=True))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    return q, k, v, positions, jnp.ones((2, 9), jnp.int32)


def _part(keep, q, k, v, positions, segments):
    return attention_with_lse(
        q, k, v, positions=positions, segment_ids=segments, kv_positions=positions, kv_segment_ids=jnp.where(keep, segments, 0)
    )


def test_three_sets_of_keys_equal_one_softmax_over_all():
    inputs = _inputs()
    group = jnp.asarray([0, 1, 2, 2, 0, 1, 1, 0, 2])  # early queries see no key of some sets
    expected = attention_with_lse(*inputs[:3], positions=inputs[3], segment_ids=inputs[4])
    merged = merge_parts([_part(group == number, *inputs) for number in range(3)])
    for found, wanted in zip(merged, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_rows_that_see_no_key_in_any_part_are_zero_with_finite_gradients():
    q, k, v, positions, segments = _inputs()
    nobody = jnp.zeros(9, bool)

    def total(q):
        out, lse = merge_parts([_part(nobody, q, k, v, positions, segments)] * 2)
        return jnp.sum(out), (out, lse)

    gradient, (out, lse) = jax.grad(total, has_aux=True)(q)
    assert (out == 0).all() and (lse == NO_KEY).all() and (gradient == 0).all()
