"""Dual chunk attention against a loop over pairs, its identities, and decoding across the borders of chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.kernels.attention import attention_with_lse, merge_parts
from lmx.model import dual_chunk, rope
from lmx.model.config import AttentionConfig, DualChunk, RopeConfig
from lmx.model.decoder import build_model

CHUNKS = DualChunk(window=14, chunk_size=10)
LENGTH = 64


def relative_positions(chunks, length):
    """The definition: relative position of every pair (i, j), -1 where j is later."""
    found = np.full((length, length), -1)
    last = chunks.window - 1 + chunks.clamp_offset
    for i, j in zip(*np.tril_indices(length), strict=True):
        place, distance = i % chunks.chunk_size, i // chunks.chunk_size - j // chunks.chunk_size
        query = place if distance == 0 else min(place + chunks.chunk_size, last) if distance == 1 else last
        found[i, j] = query - j % chunks.chunk_size
    return found


def parts_of(chunks, length):
    """Which pairs each part sees, and the angle position of its queries (read off a single slow frequency)."""
    config = AttentionConfig(q_heads=1, kv_heads=1, head_dim=2, rope=RopeConfig(theta=10.0), dual_chunk=chunks)
    positions = jnp.arange(length)[None]
    for part in dual_chunk.parts(positions, positions, config, chunks):
        distance = part.positions[0, :, None] - part.kv_positions[0, None, :]
        sees = (distance >= 0) & (True if part.window is None else distance < part.window)
        yield np.asarray(sees), np.asarray(part.cos[0, :, 0]), np.asarray(part.sin[0, :, 0])


@pytest.mark.parametrize("clamp_offset", [0, 1])
def test_parts_tile_the_causal_triangle_with_the_relative_positions_of_the_definition(clamp_offset):
    chunks = dataclasses.replace(CHUNKS, clamp_offset=clamp_offset)
    expected = relative_positions(chunks, LENGTH)
    covered = np.zeros((LENGTH, LENGTH), int)
    keys = np.arange(LENGTH) % chunks.chunk_size
    for sees, cos, sin in parts_of(chunks, LENGTH):
        sees = sees & np.tril(np.ones_like(sees))
        covered += sees
        angle = np.cos(expected) * np.cos(keys) - np.sin(expected) * np.sin(keys)  # cos(relative + key) = cos(query)
        np.testing.assert_allclose(np.where(sees, angle, 0), np.where(sees, cos[:, None], 0), atol=1e-5)
        assert np.allclose(cos**2 + sin**2, 1, atol=1e-5)
    np.testing.assert_array_equal(covered, np.tril(np.ones((LENGTH, LENGTH))))


def test_no_part_sees_a_later_key():
    for sees, _, _ in parts_of(CHUNKS, LENGTH):
        assert not np.triu(sees, 1).any()


def test_relative_positions_stay_below_the_window_and_are_exact_nearby():
    found = relative_positions(CHUNKS, LENGTH)
    assert found.max() == CHUNKS.window - 1
    i, j = np.tril_indices(LENGTH)
    near = i - j <= CHUNKS.window - CHUNKS.chunk_size
    np.testing.assert_array_equal(found[i, j][near], (i - j)[near])
    assert found[i, j][i != j].min() == 1


def with_chunks(built, chunks):
    (block,) = built.config.layer_pattern
    attention = dataclasses.replace(block.attention, dual_chunk=chunks)
    return dataclasses.replace(built.config, layer_pattern=(dataclasses.replace(block, attention=attention),))


@pytest.mark.parametrize("name", ["qwen2", "afm"])  # with biases; with QK-norm behind RoPE
def test_a_model_within_one_chunk_is_the_plain_model(built, make_batch, name):
    plain, batch = built(name), make_batch([[10], [4, 6]], 12)
    chunked = build_model(with_chunks(plain, DualChunk(window=16, chunk_size=12)))
    np.testing.assert_allclose(chunked.apply(plain.params, batch).hidden, plain.apply(plain.params, batch).hidden, atol=2e-5)


def test_attention_equals_a_loop_over_pairs_of_rotated_vectors(built):
    """One layer's attention from q, k, v by the definition: each pair rotated by its own relative position, in float64."""
    rng = np.random.default_rng(0)
    heads, size = 2, 8
    config = AttentionConfig(q_heads=heads, kv_heads=heads, head_dim=size, rope=RopeConfig(theta=50.0), dual_chunk=CHUNKS)
    q, k, v = rng.standard_normal((3, LENGTH, heads, size))
    frequencies, relative = rope.frequencies(size, config.rope), relative_positions(CHUNKS, LENGTH)
    expected = np.zeros_like(q)
    for i, n in np.ndindex(LENGTH, heads):
        angles = relative[i, : i + 1, None] * frequencies
        first, second = np.split(k[: i + 1, n], 2, axis=-1)
        turned = np.concatenate(
            [first * np.cos(angles) + second * np.sin(angles), second * np.cos(angles) - first * np.sin(angles)], -1
        )
        weights = np.exp(turned @ q[i, n] * size**-0.5)
        expected[i, n] = weights @ v[: i + 1, n] / weights.sum()
    found = attend(config, *(jnp.float32(x)[None] for x in (q, k, v)))
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def attend(config, q, k, v):
    chunks = config.dual_chunk
    positions = jnp.arange(q.shape[1])[None]
    ones = jnp.ones_like(positions)
    k = rope.rotate(k, *dual_chunk.key_rotation(positions, config, chunks))
    found = []
    for part in dual_chunk.parts(positions, positions, config, chunks):
        layout = dict(positions=part.positions, kv_positions=part.kv_positions, segment_ids=ones, kv_segment_ids=ones)
        found.append(attention_with_lse(rope.rotate(q, part.cos, part.sin), k, v, window=part.window, **layout))
    return merge_parts(found)[0]


def columns(batch, start, stop):
    return jax.tree.map(lambda leaf: leaf[:, start:stop], batch)


@pytest.mark.parametrize("length_factor", [1.0, 4.0])
def test_decoding_across_chunks_equals_the_full_forward_pass(built, make_batch, length_factor):
    plain = built("llama3")
    model = build_model(with_chunks(plain, DualChunk(window=7, chunk_size=5, length_factor=length_factor)))
    batch = make_batch([[24], [17]], 24)
    expected = jax.jit(model.apply)(plain.params, batch).hidden
    cache, decode = model.init_cache(2, 24), jax.jit(model.decode)
    for start, stop in [(0, 7), *((at, at + 1) for at in range(7, 24))]:
        outputs, cache = decode(plain.params, columns(batch, start, stop), cache)
        valid = batch.segment_ids[:, start:stop] > 0
        np.testing.assert_allclose(outputs.hidden[valid], expected[:, start:stop][valid], atol=2e-5)


def test_the_temperature_multiplies_scores_as_yarn_does():
    assert dual_chunk.temperature(dataclasses.replace(CHUNKS, length_factor=4.0)) == pytest.approx(1.296476993, abs=1e-9)
    assert dual_chunk.temperature(CHUNKS) == 1.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"chunk_size": 14}, r"chunk_size=14 must lie in 1..13"),
        ({"clamp_offset": 2}, r"clamp_offset=2 must be 0 .* or 1"),
        ({"length_factor": 0.5}, r"length_factor=0.5 must be at least 1"),
    ],
)
def test_impossible_chunks_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CHUNKS, **options)


def test_a_window_excludes_dual_chunks():
    with pytest.raises(ValueError, match="window=8 and dual_chunk exclude each other"):
        AttentionConfig(q_heads=1, kv_heads=1, head_dim=2, rope=RopeConfig(theta=10.0), window=8, dual_chunk=CHUNKS)
