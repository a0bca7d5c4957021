"""The attention layer: QK-norm, its order, biases, and what reaches the kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.model import rope
from lmx.model.attention import Attention, BlockInputs
from lmx.model.config import AttentionConfig, NormConfig, RopeConfig
from lmx.model.execution import Execution

CONFIG = AttentionConfig(q_heads=6, kv_heads=2, head_dim=8, rope=RopeConfig(theta=100.0), qk_norm=NormConfig(eps=1e-6))
X = jax.random.normal(jax.random.key(0), (2, 5, 16)) * 4


def _run(config, edit=lambda params: params):
    """The layer's output and the keyword and positional arguments its kernel was called with."""
    calls = []

    def kernel(q, k, v, **options):
        calls.append((q, k, v, options))
        return q * jnp.mean(k)

    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    inputs = BlockInputs(positions, jnp.ones_like(positions), *rope.rotation(positions, 8, config.rope))
    layer = Attention(config, 16, Execution(attention=kernel))
    boxes = layer.init(jax.random.key(1), X, inputs, None, 0)["params"]
    params = edit(jax.tree.map(lambda box: box.value, boxes, is_leaf=lambda box: hasattr(box, "value")))
    calls.clear()
    out, _ = layer.apply({"params": params}, X, inputs, None, 0)
    return out, calls[0]


def test_qk_norm_bounds_every_scaled_score_by_the_root_of_head_dim():
    _, (q, k, _, options) = _run(CONFIG)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q.reshape(2, 5, 2, 3, 8), k) * options["scale"]
    assert jnp.max(jnp.abs(scores)) <= np.sqrt(8) * (1 + 1e-5)
    np.testing.assert_allclose(jnp.mean(k**2, -1), 1.0, rtol=1e-4)


def test_norm_order_matters_exactly_when_the_gain_is_not_constant():
    before = dataclasses.replace(CONFIG, qk_norm_before_rope=True)

    def uneven(params):
        return params | {"q_norm": {"gain": jnp.arange(1.0, 9.0)}}

    np.testing.assert_allclose(_run(CONFIG)[1][0], _run(before)[1][0], atol=1e-5)
    assert jnp.max(jnp.abs(_run(CONFIG, uneven)[1][0] - _run(before, uneven)[1][0])) > 0.1


@pytest.mark.parametrize(("scale", "expected"), [(None, 8**-0.5), (1 / 12, 1 / 12)])
def test_kernel_receives_scale_window_and_cap(scale, expected):
    _, (_, _, _, options) = _run(dataclasses.replace(CONFIG, scale=scale, window=3, soft_cap=50.0))
    assert (options["scale"], options["window"], options["soft_cap"]) == (expected, 3, 50.0)


def test_biases_are_added_to_q_k_and_v_before_rope():
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=None)

    def biased(params):
        return params | {n: params[n] | {"bias": jnp.ones_like(params[n]["bias"])} for n in "qkv"}

    _, plain = _run(config)
    _, shifted = _run(config, biased)
    np.testing.assert_allclose(shifted[2] - plain[2], 1.0, atol=1e-5)  # v
    for before, after in zip(plain[:2], shifted[:2], strict=True):
        np.testing.assert_allclose((after - before)[:, 0], 1.0, atol=1e-5)  # position 0 is not rotated
        assert jnp.max(jnp.abs((after - before)[:, 1:] - 1.0)) > 0.1
