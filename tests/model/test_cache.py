"""Decoding with a cache: step by step, in chunks, across the window's border and in rows of different lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Precision
from lmx.data.batches import LMBatch
from lmx.model import accounting
from lmx.model.decoder import build_model
from lmx.model.execution import Execution

LENGTH, CHUNK = 24, 12


def _columns(batch: LMBatch, start: int, stop: int) -> LMBatch:
    return jax.tree.map(lambda leaf: leaf[:, start:stop], batch)


def test_decoding_token_by_token_equals_the_full_forward_pass(family, make_batch):
    batch = make_batch([[LENGTH], [LENGTH]], LENGTH)  # three windows of 8: every ring wraps twice
    expected = family.apply(family.params, batch).hidden

    def step(cache, token):
        outputs, cache = family.model.decode(family.params, jax.tree.map(lambda leaf: leaf[:, None], token), cache)
        return cache, outputs.hidden[:, 0]

    generate = jax.jit(lambda cache, tokens: jax.lax.scan(step, cache, tokens), donate_argnums=0)
    cache, hidden = generate(family.model.init_cache(2, LENGTH), jax.tree.map(lambda leaf: leaf.T, batch))
    np.testing.assert_allclose(hidden.swapaxes(0, 1), expected, atol=2e-5)
    np.testing.assert_array_equal(cache.lengths, LENGTH)


def test_ragged_chunks_longer_than_the_window_equal_the_full_forward_pass(family, make_batch):
    batch = make_batch([[22], [15]], LENGTH)
    expected = family.apply(family.params, batch).hidden
    taken = np.array([[12, 9], [3, 6], [7, 0]])  # new tokens of each row in each call; the last row is complete after two
    cache, done = family.model.init_cache(2, LENGTH), np.zeros(2, int)
    for counts in taken:
        columns = done[:, None] + np.arange(CHUNK)
        valid = jnp.asarray(np.arange(CHUNK) < counts[:, None])
        columns = np.minimum(columns, LENGTH - 1)
        rows = np.arange(2)[:, None]
        chunk = jax.tree.map(lambda leaf, rows=rows, columns=columns: leaf[rows, columns], batch)
        chunk = dataclasses.replace(chunk, segment_ids=valid.astype(jnp.int32))
        outputs, cache = family.decode(family.params, chunk, cache)
        for row, (start, count) in enumerate(zip(done, counts, strict=True)):
            np.testing.assert_allclose(outputs.hidden[row, :count], expected[row, start : start + count], atol=2e-5)
        assert jnp.all(jnp.isfinite(outputs.hidden))
        done = done + counts
        np.testing.assert_array_equal(cache.lengths, done)


def test_packed_documents_stay_apart_in_the_cache(built, make_batch):
    gemma = built("gemma2")
    batch = make_batch([[7, 14], [10, 4, 6]], LENGTH)
    expected = gemma.apply(gemma.params, batch).hidden
    cache = gemma.model.init_cache(2, LENGTH)
    for start in (0, CHUNK):
        outputs, cache = gemma.decode(gemma.params, _columns(batch, start, start + CHUNK), cache)
        valid = batch.segment_ids[:, start : start + CHUNK] > 0
        np.testing.assert_allclose(outputs.hidden[valid], expected[:, start : start + CHUNK][valid], atol=2e-5)


def test_left_padding_is_not_written(built, make_batch):
    llama = built("llama3")
    batch = make_batch([[CHUNK - 3], [CHUNK - 3]], CHUNK)
    expected = llama.apply(llama.params, make_batch([[CHUNK - 3]] * 2, LENGTH, tokens=jnp.pad(batch.tokens, ((0, 0), (0, 12)))))
    shifted = jax.tree.map(lambda leaf: jnp.roll(leaf, 3, axis=1), batch)
    outputs, cache = llama.decode(llama.params, shifted, llama.model.init_cache(2, LENGTH))
    np.testing.assert_allclose(outputs.hidden[:, 3:], expected.hidden[:, : CHUNK - 3], atol=2e-5)
    np.testing.assert_array_equal(cache.lengths, CHUNK - 3)
    np.testing.assert_array_equal(cache.layers[0].segment_ids.sum(-1), CHUNK - 3)


def test_cache_holds_a_ring_for_windowed_layers_and_everything_for_global_ones(built):
    gemma = built("gemma2")
    local, full = jax.eval_shape(lambda: gemma.model.init_cache(3, 40)).layers
    assert (local.k.shape, local.v.shape) == ((2, 3, 2, 12, 8), (2, 3, 2, 8, 12))
    assert (full.k.shape, full.v.shape) == ((2, 3, 2, 12, 40), (2, 3, 2, 40, 12))
    elements = sum(leaf.size for layer in (local, full) for leaf in (layer.k, layer.v))
    assert elements == 3 * accounting.cache_elements(gemma.config, 40)
    assert jax.eval_shape(lambda: gemma.model.init_cache(3, 5)).layers[0].v.shape[3] == 5


def test_a_bfloat16_model_has_a_bfloat16_cache(built):
    model = build_model(built("gemma2").config, Execution(precision=Precision(activations="bfloat16")))
    assert {layer.k.dtype for layer in jax.eval_shape(lambda: model.init_cache(1, 8)).layers} == {jnp.dtype(jnp.bfloat16)}


def test_impossible_cache_lengths_are_refused_with_the_numbers(built, make_batch):
    llama = built("llama3")
    with pytest.raises(ValueError, match=r"cache length 65 must lie in 1\.\.64"):
        llama.model.init_cache(1, 65)
    with pytest.raises(ValueError, match="12 new tokens do not fit a cache of 8"):
        jax.eval_shape(llama.model.decode, llama.params, make_batch([[12]], 12), llama.model.init_cache(1, 8))
