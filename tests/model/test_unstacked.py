"""Decoding with unstacked parameters and cache against the scanned layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.kernels import head
from lmx.model.decoder import build_model
from lmx.model.unstacked import is_unstacked, stack_cache, unstack_cache, unstack_params
from lmx.sampling.padding import right_padded

SIZE = dict(vocab_size=64, model_dim=32, num_layers=4, q_heads=4, kv_heads=2, head_dim=16, max_length=32)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2_moe", "afm", "gemma2", "llama3"])
def test_unstacked_layers_decode_as_scanned_ones(family, kv_dtype):
    model = build_model(getattr(tiny, family)(**SIZE, **({"window": 4} if family == "gemma2" else {})))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), leaf.dtype), model.abstract_params())
    tokens, lengths = jnp.asarray(random.integers(0, 64, (2, 6))), jnp.asarray([6, 3])
    batch, cache = right_padded(tokens, lengths), model.init_cache(2, 8, kv_dtype)
    outputs, after = jax.jit(model.decode)(params, batch, cache)
    unstacked = unstack_params(params)
    assert is_unstacked(unstacked) and not is_unstacked(params)
    found, unstacked_after = jax.jit(model.decode)(unstacked, batch, unstack_cache(cache))
    valid = np.asarray(batch.segment_ids) > 0
    np.testing.assert_allclose(head.logits(found)[valid], head.logits(outputs)[valid], atol=2e-4)
    stacked = stack_cache(unstacked_after)
    assert jax.tree.structure(stacked) == jax.tree.structure(after)
    for one, two in zip(jax.tree.leaves(stacked), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one, two, atol=1 if one.dtype == jnp.int8 else 1e-4)  # a rounding may go the other way


def test_layers_that_read_the_same_input_are_one_matrix_and_experts_stay_apart():
    model = build_model(tiny.qwen2_moe(**SIZE))
    params = model.init(jax.random.key(0))
    block, joined = params["blocks"]["0"], unstack_params(params)["blocks"][1]["0"]
    kernels = [block["attention"][name]["kernel"][1].reshape(SIZE["model_dim"], -1) for name in "qkv"]
    np.testing.assert_array_equal(joined["attention"]["qkv"]["rows"], jnp.concatenate(kernels, axis=1).T)
    biases = [block["attention"][name]["bias"][1] for name in "qkv"]
    np.testing.assert_array_equal(joined["attention"]["qkv"]["bias"], jnp.concatenate(biases))
    assert {"q", "k", "v"}.isdisjoint(joined["attention"])
    assert jax.tree.structure(joined["ffn"]["experts"]) == jax.tree.structure(block["ffn"]["experts"])


def test_a_cache_is_the_same_after_unstacking_and_stacking():
    model = build_model(tiny.gemma2(**SIZE))
    cache = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape), model.init_cache(2, 8))
    for one, two in zip(jax.tree.leaves(stack_cache(unstack_cache(cache))), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(one, two)
