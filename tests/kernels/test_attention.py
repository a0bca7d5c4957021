"""Attention: the reference against a loop over pairs, the chunked implementation against the reference, and invariants of both."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.kernels.attention import api, attention, attention_with_lse, chunked, reference

IMPLEMENTATIONS = ("reference", "chunked")
NO_KEY = float(jnp.finfo(jnp.float32).min)


def packed(lengths, row_length):
    """Positions and segment ids, [1, T] int32, of documents of these lengths, padded to `row_length`."""
    positions = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(row_length - sum(lengths))])
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.zeros(row_length - sum(lengths))])
    return jnp.asarray(positions[None], jnp.int32), jnp.asarray(segments[None], jnp.int32)


def random_inputs(key, batch, length, q_heads, kv_heads, head_dim, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(key), 3)
    heads = (q_heads, kv_heads, kv_heads)
    return [jax.random.normal(k, (batch, length, n, head_dim), dtype) for k, n in zip(keys, heads, strict=True)]


def brute_force(q, k, v, positions, segments, window=None, soft_cap=None, scale=None):
    """Output and log-sum-exp in float64, one query and one key at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, q_heads, head_dim = q.shape
    group, scale = q_heads // k.shape[2], head_dim**-0.5 if scale is None else scale
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], NO_KEY)
    for b, i, n in np.ndindex(batch, length, q_heads):
        scores, values = [], []
        for j in range(length):
            distance = int(positions[b, i]) - int(positions[b, j])
            same_document = segments[b, i] == segments[b, j] and segments[b, j] > 0
            if same_document and distance >= 0 and (window is None or distance < window):
                score = scale * q[b, i, n] @ k[b, j, n // group]
                scores.append(score if soft_cap is None else soft_cap * math.tanh(score / soft_cap))
                values.append(v[b, j, n // group])
        if scores:
            weights = np.exp(scores)
            out[b, i, n], lse[b, i, n] = weights @ np.stack(values) / weights.sum(), np.log(weights.sum())
    return out, lse


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("window", "soft_cap", "scale"), [(None, None, None), (3, None, 0.5), (5, 2.0, None), (1, None, None)])
def test_attention_equals_a_loop_over_queries_and_keys(implementation, window, soft_cap, scale):
    q, k, v = random_inputs(0, 1, 13, 4, 2, 4)
    positions, segments = packed([5, 6], 13)
    options = dict(window=window, soft_cap=soft_cap, scale=scale)
    out, lse = attention_with_lse(q, k, v, positions=positions, segment_ids=segments, implementation=implementation, **options)
    expected_out, expected_lse = brute_force(q, k, v, positions, segments, **options)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)


@functools.partial(jax.jit, static_argnames=("kernel", "window", "soft_cap", "block"))
def value_and_vjp(q, k, v, out_grad, lse_grad, ids, *, kernel, window, soft_cap, block=None):
    options = {} if block is None else {"block": block}

    def run(q, k, v):
        scale = q.shape[-1] ** -0.5
        return kernel(q, k, v, **ids, window=window, soft_cap=soft_cap, scale=scale, **options)

    values, pullback = jax.vjp(run, q, k, v)
    return values, pullback((out_grad, lse_grad))


def assert_chunked_equals_reference(q, k, v, ids, *, window, soft_cap, block, atol=2e-5):
    keys = jax.random.split(jax.random.key(9), 2)
    cotangents = jax.random.normal(keys[0], q.shape, q.dtype), jax.random.normal(keys[1], q.shape[:3])
    options = dict(window=window, soft_cap=soft_cap)
    expected = value_and_vjp(q, k, v, *cotangents, ids, kernel=reference.attention_with_lse, **options)
    actual = value_and_vjp(q, k, v, *cotangents, ids, kernel=chunked.attention_with_lse, block=block, **options)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "row_length", "block", "window", "soft_cap"),
    [
        (2, 2, 32, 8, None, None),  # whole tiles
        (4, 2, 37, 8, None, 2.0),  # grouped heads, a ragged last tile, capped
        (6, 1, 37, 16, 5, None),  # one KV head, a window shorter than a tile
        (4, 2, 40, 8, 8, 1.5),  # window = tile
        (4, 4, 40, 8, 17, None),  # window over several tiles
        (2, 1, 20, 64, 1, 2.0),  # one tile; only itself to see
    ],
)
def test_chunked_equals_reference_in_values_and_vjp_of_output_and_lse(q_heads, kv_heads, row_length, block, window, soft_cap):
    q, k, v = random_inputs(1, 2, row_length, q_heads, kv_heads, 4)
    rows = [packed([row_length], row_length), packed([7, row_length - 11], row_length)]
    positions, segments = (jnp.concatenate(x) for x in zip(*rows, strict=True))
    ids = dict(positions=positions, segment_ids=segments, kv_positions=None, kv_segment_ids=None)
    assert_chunked_equals_reference(q, k, v, ids, window=window, soft_cap=soft_cap, block=block)


@pytest.mark.parametrize("window", [None, 4])
def test_chunked_equals_reference_over_keys_out_of_order(window):
    """As in a ring cache: more keys than queries, positions rotated, some entries empty."""
    q, _, _ = random_inputs(2, 2, 10, 4, 2, 4)
    _, k, v = random_inputs(3, 2, 23, 4, 2, 4)
    positions = jnp.broadcast_to(jnp.arange(15, 25), (2, 10))
    kv_positions = jnp.broadcast_to(jnp.roll(jnp.arange(2, 25), 9), (2, 23))
    kv_segments = (kv_positions > 4).astype(jnp.int32)
    ids = dict(positions=positions, segment_ids=jnp.ones_like(positions), kv_positions=kv_positions, kv_segment_ids=kv_segments)
    assert_chunked_equals_reference(q, k, v, ids, window=window, soft_cap=None, block=8)


def test_chunked_equals_reference_in_bfloat16_within_its_precision():
    q, k, v = random_inputs(4, 1, 24, 4, 2, 8, jnp.bfloat16)
    positions, segments = packed([24], 24)
    ids = dict(positions=positions, segment_ids=segments, kv_positions=None, kv_segment_ids=None)
    assert_chunked_equals_reference(q, k, v, ids, window=None, soft_cap=None, block=8, atol=0.04)  # bf16 steps are 2^-8 of a value


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_equals_central_differences(implementation):
    positions, segments = packed([6, 4], 11)

    @jax.jit
    def loss(x):
        q, k, v = x[:, :, :4], x[:, :, 4:6], x[:, :, 6:]
        options = dict(window=4, soft_cap=3.0, implementation=implementation)
        out, lse = attention_with_lse(q, k, v, positions=positions, segment_ids=segments, **options)
        seen = (segments > 0)[..., None]
        return jnp.sum(jnp.sin(out.astype(jnp.float32))) + jnp.sum(jnp.where(seen, jnp.cos(lse), 0.0))

    x = jax.random.normal(jax.random.key(5), (1, 11, 8, 2))
    direction = jax.random.normal(jax.random.key(6), x.shape)
    analytic = jnp.vdot(jax.grad(loss)(x), direction)
    step = 1e-2  # scores and softmax are float32 whatever the inputs: central differences err by step^2 and by 1e-6 / step
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(analytic, numeric, rtol=2e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_without_keys_give_zero_and_the_lowest_lse_and_no_nan_gradient(implementation):
    q, k, v = random_inputs(7, 1, 12, 2, 1, 4)
    positions, segments = packed([7], 12)

    def run(q, k, v):
        return attention_with_lse(q, k, v, positions=positions, segment_ids=segments, implementation=implementation)

    (out, lse), pullback = jax.vjp(jax.jit(run), q, k, v)
    assert np.all(np.asarray(out)[:, 7:] == 0.0)
    assert np.all(np.asarray(lse)[:, 7:] == NO_KEY)
    for gradient in map(np.asarray, pullback((jnp.ones_like(out), jnp.ones_like(lse)))):
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[:, 7:] == 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_never_matters_even_as_nan(implementation):
    positions, segments = packed([4, 5], 14)
    arrays = random_inputs(8, 1, 14, 4, 2, 4)
    padding = (segments == 0)[..., None, None]
    spoilt = [jnp.where(padding, jnp.nan, x) for x in arrays]

    def loss(arrays):
        options = dict(positions=positions, segment_ids=segments, window=3, implementation=implementation)
        return jnp.sum(jnp.square(attention(*arrays, **options)))

    run = jax.jit(jax.value_and_grad(loss))
    jax.tree.map(np.testing.assert_array_equal, run(spoilt), run(arrays))


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    window=st.sampled_from([None, 3]),
    implementation=st.sampled_from(IMPLEMENTATIONS),
    data=st.data(),
)
def test_the_order_of_documents_in_a_row_does_not_matter(lengths, window, implementation, data):
    order = data.draw(st.permutations(range(len(lengths))))
    arrays = random_inputs(10, 1, 24, 4, 2, 4)
    starts = np.cumsum([0, *lengths])
    indices = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order] + [np.arange(sum(lengths), 24)])
    attend = jitted(window, implementation)
    straight = attend(*arrays, *packed(lengths, 24))
    permuted = attend(*(np.asarray(x)[:, indices] for x in arrays), *packed([lengths[i] for i in order], 24))
    np.testing.assert_allclose(permuted, np.asarray(straight)[:, indices], atol=1e-6)


@given(cut=st.integers(1, 23), implementation=st.sampled_from(IMPLEMENTATIONS))
def test_later_tokens_never_change_earlier_outputs(cut, implementation):
    arrays = random_inputs(11, 1, 24, 4, 2, 4)
    changed = [np.where(np.arange(24)[None, :, None, None] < cut, x, 7.0) for x in arrays]
    attend, ids = jitted(None, implementation), packed([24], 24)
    actual, expected = (np.asarray(attend(*x, *ids))[:, :cut] for x in (changed, arrays))
    np.testing.assert_array_equal(actual, expected)


@functools.cache
def jitted(window, implementation):
    def attend(q, k, v, positions, segments):
        return attention(q, k, v, positions=positions, segment_ids=segments, window=window, implementation=implementation)

    return jax.jit(attend)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_window_as_long_as_the_row_equals_no_window(implementation):
    q, k, v = random_inputs(12, 1, 20, 2, 2, 4)
    positions, segments = packed([20], 20)
    options = dict(positions=positions, segment_ids=segments, implementation=implementation)
    np.testing.assert_array_equal(attention(q, k, v, window=20, **options), attention(q, k, v, **options))


def test_parts_computed_apart_merge_by_their_log_sum_exps():
    q, k, v = random_inputs(13, 1, 16, 2, 1, 4)
    positions, segments = packed([16], 16)
    whole, whole_lse = attention_with_lse(q, k, v, positions=positions, segment_ids=segments)
    parts = [
        attention_with_lse(
            q,
            k[:, half],
            v[:, half],
            positions=positions,
            segment_ids=segments,
            kv_positions=positions[:, half],
            kv_segment_ids=segments[:, half],
        )
        for half in (slice(0, 8), slice(8, 16))
    ]
    lse = jnp.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * jnp.exp(part_lse - lse)[..., None] for out, part_lse in parts)
    np.testing.assert_allclose(lse, whole_lse, atol=1e-5)
    np.testing.assert_allclose(merged, whole, atol=1e-5)


def test_chunked_skips_tiles_above_the_diagonal_and_behind_the_window():
    def tiles(window):
        masking = chunked.Masking(window=window, soft_cap=None, scale=1.0, block=8, by_index=True)
        return [tuple(pair) for pair in np.asarray(chunked._visible_tiles(masking, 4, 4)).tolist()]

    assert tiles(None) == [(i, j) for i in range(4) for j in range(i + 1)]
    assert tiles(1) == [(i, i) for i in range(4)]
    assert tiles(2) == tiles(9) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]  # query 8 sees key 7 from window 2 on
    assert (2, 0) in tiles(10)  # and query 16 sees key 7 from window 10 on


def test_chunked_keeps_no_score_matrix_for_the_backward_pass():
    q, k, v = random_inputs(14, 1, 512, 2, 2, 8)
    positions, segments = packed([512], 512)

    def temporary_bytes(implementation):
        def loss(q, k, v):
            options = dict(positions=positions, segment_ids=segments, implementation=implementation)
            return jnp.sum(attention(q, k, v, **options))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    score_matrix_bytes = 2 * 512 * 512 * 4
    assert temporary_bytes("reference") > score_matrix_bytes
    assert temporary_bytes("chunked") < score_matrix_bytes / 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sharded_over_batch_and_heads_equals_unsharded(implementation):
    q, k, v = random_inputs(15, 4, 40, 4, 2, 4)
    positions, segments = (jnp.repeat(x, 4, axis=0) for x in packed([17, 20], 40))

    def loss(q, k, v, positions, segments):
        options = dict(positions=positions, segment_ids=segments, window=9, soft_cap=5.0, implementation=implementation)
        return jnp.sum(jnp.sin(attention(q, k, v, **options)))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    expected = run(q, k, v, positions, segments)
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
    heads, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data", None, "tensor"), PartitionSpec("data")))
    actual = run(*(jax.device_put(x, heads) for x in (q, k, v)), *(jax.device_put(x, rows) for x in (positions, segments)))
    assert actual[1][1].sharding.is_equivalent_to(heads, 4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


def test_calls_that_do_not_fit_are_refused_with_the_numbers():
    q, k, v = random_inputs(16, 1, 4, 6, 4, 4)
    positions, segments = packed([4], 4)
    with pytest.raises(ValueError, match="6 query heads are not a multiple of 4 KV heads"):
        attention(q, k, v, positions=positions, segment_ids=segments)
    with pytest.raises(ValueError, match="4 queries and 3 keys are not self-attention"):
        attention(q[:, :, :4], k[:, :3], v[:, :3], positions=positions, segment_ids=segments)
    with pytest.raises(ValueError, match="give both, or neither"):
        attention(q[:, :, :4], k, v, positions=positions, segment_ids=segments, kv_positions=positions)
    with pytest.raises(ValueError, match="implementation 'dense' is not one of"):
        attention(q[:, :, :4], k, v, positions=positions, segment_ids=segments, implementation="dense")


def test_short_queries_are_dense_and_long_ones_chunked_by_default(monkeypatch):
    called = []
    for name, kernel in dict(api._IMPLEMENTATIONS).items():
        spy = lambda *args, name=name, kernel=kernel, **options: called.append(name) or kernel(*args, **options)  # noqa: E731
        monkeypatch.setitem(api._IMPLEMENTATIONS, name, spy)
    for length in (1, 64):
        q, k, v = random_inputs(17, 1, length, 2, 1, 4)
        positions, segments = packed([length], length)
        attention(q, k, v, positions=positions, segment_ids=segments)
    assert called == ["reference", "chunked"]
