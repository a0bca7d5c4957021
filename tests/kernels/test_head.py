"""Losses over chunks of logits: against the dense reference, and what they keep, skip and refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.core.types import Outputs, weighted
from lmx.kernels import head
from lmx.kernels.head import reference

B, T, D, V = 2, 11, 6, 19


def cross_entropy(logits, *, labels):
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def divergence(teacher_logits, student_logits, *, temperature):
    teacher, student = (jax.nn.log_softmax(x / temperature) for x in (teacher_logits, student_logits))
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def both(teacher_logits, student_logits, *, labels, temperature):
    """A weighted combination, and its parts as metrics."""
    hard, soft = cross_entropy(student_logits, labels=labels), divergence(teacher_logits, student_logits, temperature=temperature)
    return 0.3 * hard + 0.7 * soft, {"hard": hard, "soft": soft}


@pytest.fixture
def student():
    keys = jax.random.split(jax.random.key(0), 2)
    return Outputs(jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (V, D)), soft_cap=4.0)


@pytest.fixture
def teacher():
    keys = jax.random.split(jax.random.key(1), 2)  # another width, the same vocabulary
    return Outputs(jax.random.normal(keys[0], (B, T, 3)), jax.random.normal(keys[1], (V, 3)))


@pytest.fixture
def labels():
    return jax.random.randint(jax.random.key(2), (B, T), 0, V)


@pytest.fixture
def mask():
    return jax.random.bernoulli(jax.random.key(3), 0.6, (B, T))


def assert_close(actual, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)), actual, expected)


def test_logits_are_the_capped_product_and_lose_padding_rows_on_request(student):
    expected = 4.0 * np.tanh(np.asarray(student.hidden) @ np.asarray(student.head).T / 4.0)
    assert_close(head.logits(student), expected)
    assert_close(head.logits(student, vocab_size=7), expected[..., :7])


def test_logits_of_bfloat16_hidden_states_are_float32(student):
    logits = head.logits(Outputs(student.hidden.astype(jnp.bfloat16), student.head))
    assert logits.dtype == jnp.float32
    assert np.any(np.asarray(logits != logits.astype(jnp.bfloat16).astype(jnp.float32)))


@pytest.mark.parametrize("chunk_tokens", [None, 1, 4, 11, 64])  # 4 does not divide 11
def test_token_loss_equals_dense_in_values_and_gradients(student, teacher, labels, chunk_tokens):
    cotangent = jax.random.normal(jax.random.key(4), (B, T))

    def run(token_loss):
        def loss(student, teacher):
            hard = token_loss(student, partial(cross_entropy, labels=labels))
            soft = token_loss(teacher, student, partial(divergence, temperature=2.0))
            return jnp.sum(cotangent * (hard + soft)), (hard, soft)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(student, teacher)

    assert_close(run(partial(head.token_loss, chunk_tokens=chunk_tokens)), run(reference.token_loss), rtol=1e-4)


@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_token_loss_sum_equals_the_masked_sum_of_dense_losses(student, teacher, labels, mask, chunk_tokens):
    fn = partial(both, labels=labels, temperature=2.0)

    def fused(student):
        total, parts = head.token_loss_sum(teacher, student, fn, mask=mask, chunk_tokens=chunk_tokens)
        return 5.0 * total.mean(), (total, parts)

    def dense(student):
        losses, parts = reference.token_loss(teacher, student, fn)
        total = weighted(losses, mask)
        return 5.0 * total.mean(), (total, {name: weighted(part, mask) for name, part in parts.items()})

    assert_close(*(jax.jit(jax.value_and_grad(loss, has_aux=True))(student) for loss in (fused, dense)), rtol=1e-4)


def test_token_loss_sum_takes_float_weights_and_says_how_much_they_add_up_to(student, labels):
    weights = jax.random.uniform(jax.random.key(5), (B, T))
    losses = reference.token_loss(student, partial(cross_entropy, labels=labels))
    total, extra = head.token_loss_sum(student, partial(cross_entropy, labels=labels), mask=weights)
    assert_close((total.total, total.weight), (jnp.sum(losses * weights), jnp.sum(weights)))
    assert extra == {}


def test_token_loss_returns_the_structure_of_its_function(student, labels):
    def pair(logits, *, labels):
        return {"nll": cross_entropy(logits, labels=labels), "spread": (jnp.var(logits, axis=-1),)}

    def loss(student, token_loss):
        losses = token_loss(student, partial(pair, labels=labels))
        return jnp.sum(losses["nll"] * 0.5) + jnp.sum(losses["spread"][0] ** 2), losses

    chunked, dense = (
        jax.value_and_grad(loss, has_aux=True)(student, fn)
        for fn in (partial(head.token_loss, chunk_tokens=3), reference.token_loss)
    )
    assert_close(chunked, dense, rtol=1e-4)


def test_per_token_keywords_are_cut_and_the_others_passed_whole(student, labels):
    seen = {}

    def fn(logits, *, labels, table, sharpness):
        seen.update(labels=labels.shape, table=table.shape, sharpness=sharpness)
        return sharpness * cross_entropy(logits, labels=labels) + table[0]

    table = jnp.arange(V, dtype=jnp.float32)
    losses = head.token_loss(student, partial(fn, labels=labels, table=table, sharpness=2.0), chunk_tokens=4)
    assert seen == {"labels": (B, 4), "table": (V,), "sharpness": 2.0}
    assert_close(losses, 2.0 * reference.token_loss(student, partial(cross_entropy, labels=labels)))


def test_two_outputs_that_share_a_head_add_up_their_gradients(student):
    def loss(table, token_loss):
        first, second = Outputs(student.hidden, table), Outputs(student.hidden[:, ::-1], table)
        return jnp.sum(token_loss(first, second, partial(divergence, temperature=1.0)))

    assert_close(*(jax.grad(loss)(student.head, fn) for fn in (head.token_loss, reference.token_loss)), rtol=1e-4, atol=1e-5)


def test_masked_tokens_never_matter_even_as_nan(student, teacher, labels, mask):
    fn = partial(both, labels=labels, temperature=2.0)

    def losses(hidden):
        outputs = Outputs(hidden, student.head, soft_cap=4.0)
        summed, parts = head.token_loss_sum(teacher, outputs, fn, mask=mask, chunk_tokens=4)
        unreduced = weighted(head.token_loss(outputs, partial(cross_entropy, labels=labels), chunk_tokens=4), mask)
        return summed.total + unreduced.total, parts

    def run(hidden):
        return jax.value_and_grad(losses, has_aux=True)(hidden)

    spoilt = jnp.where(mask[..., None], student.hidden, jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, run(spoilt), run(student.hidden))


def test_a_mask_without_tokens_gives_zero_and_zero_gradient(student, labels):
    def loss(student):
        return head.token_loss_sum(student, partial(cross_entropy, labels=labels), mask=jnp.zeros((B, T), bool))[0].mean()

    value, grads = jax.value_and_grad(loss)(student)
    assert value == 0
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@given(chunk_tokens=st.sampled_from([1, 3, 7]), bits=st.lists(st.booleans(), min_size=7, max_size=7), shift=st.floats(-50, 50))
def test_neither_chunks_nor_a_shift_of_all_logits_change_a_masked_sum(chunk_tokens, bits, shift):
    outputs = Outputs(jax.random.normal(jax.random.key(7), (1, 7, D)), jax.random.normal(jax.random.key(8), (V, D)))
    total = shifted_sum(outputs, np.asarray([bits]), np.float32(shift), chunk_tokens)
    assert_close(total, shifted_sum(outputs, np.asarray([bits]), np.float32(0), 7), rtol=1e-4, atol=1e-4)


@partial(jax.jit, static_argnums=3)
def shifted_sum(outputs, mask, shift, chunk_tokens):
    def fn(logits, *, labels, shift):
        return cross_entropy(logits + shift, labels=labels)

    fn = partial(fn, labels=jnp.arange(7)[None], shift=shift)
    return head.token_loss_sum(outputs, fn, mask=mask, chunk_tokens=chunk_tokens)[0]


CHUNK, WIDTH, VOCABULARY = 32, 128, 512


def products_per_chunk(loss, *args):
    """FLOPs of value and gradient, in products of one chunk with the head; XLA counts the body of a loop once."""
    analysis = jax.jit(jax.value_and_grad(loss)).lower(*args).compile().cost_analysis()
    return analysis["flops"] / (2 * CHUNK * WIDTH * VOCABULARY)


def two_chunks_of_ones():
    return Outputs(jnp.ones((1, 2 * CHUNK, WIDTH)), jnp.ones((VOCABULARY, WIDTH)))


def test_a_fused_sum_costs_three_products_and_an_unreduced_loss_four():
    fn, mask = partial(cross_entropy, labels=jnp.zeros((1, 2 * CHUNK), jnp.int32)), jnp.ones((1, 2 * CHUNK))

    def fused(outputs):
        return head.token_loss_sum(outputs, fn, mask=mask, chunk_tokens=CHUNK)[0].total

    def unreduced(outputs):
        return jnp.sum(head.token_loss(outputs, fn, chunk_tokens=CHUNK))

    assert 3.0 <= products_per_chunk(fused, two_chunks_of_ones()) < 3.3
    assert 4.0 <= products_per_chunk(unreduced, two_chunks_of_ones()) < 4.3


def test_a_teacher_under_stop_gradient_costs_one_product():
    def loss(student, teacher):
        fn, mask = partial(divergence, temperature=1.0), jnp.ones((1, 2 * CHUNK))
        return head.token_loss_sum(jax.lax.stop_gradient(teacher), student, fn, mask=mask, chunk_tokens=CHUNK)[0].total

    assert 4.0 <= products_per_chunk(loss, two_chunks_of_ones(), two_chunks_of_ones()) < 4.6  # student 3, teacher 1


@pytest.mark.parametrize("fused", [False, True])
def test_no_logits_of_all_tokens_are_kept(fused):
    length, width, vocabulary = 512, 8, 512
    outputs = Outputs(jnp.ones((1, length, width)), jnp.ones((vocabulary, width)))
    fn, mask = partial(cross_entropy, labels=jnp.zeros((1, length), jnp.int32)), jnp.ones((1, length))

    def chunked(outputs):
        if fused:
            return head.token_loss_sum(outputs, fn, mask=mask, chunk_tokens=16)[0].total
        return jnp.sum(head.token_loss(outputs, fn, chunk_tokens=16))

    def dense(outputs):
        return jnp.sum(reference.token_loss(outputs, fn))

    def temporary_bytes(loss):
        return jax.jit(jax.grad(loss)).lower(outputs).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = length * vocabulary * 4
    assert temporary_bytes(dense) > logits_bytes
    assert temporary_bytes(chunked) < logits_bytes / 3


def test_bfloat16_hidden_states_and_float32_heads_keep_their_dtypes_in_gradients(student, labels, mask):
    def loss(hidden, table):
        return head.token_loss_sum(Outputs(hidden, table), partial(cross_entropy, labels=labels), mask=mask, chunk_tokens=4)[
            0
        ].mean()

    exact = jax.grad(loss, argnums=(0, 1))(student.hidden, student.head)
    rounded = jax.grad(loss, argnums=(0, 1))(student.hidden.astype(jnp.bfloat16), student.head)
    assert [g.dtype for g in rounded] == [jnp.bfloat16, jnp.float32]
    assert_close(tuple(g.astype(jnp.float32) for g in rounded), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("fused", [False, True])
def test_sharded_over_batch_and_vocabulary_equals_unsharded(fused):
    keys = jax.random.split(jax.random.key(6), 4)
    outputs = Outputs(jax.random.normal(keys[0], (8, T, D)), jax.random.normal(keys[1], (20, D)), soft_cap=4.0)
    labels, mask = jax.random.randint(keys[2], (8, T), 0, 20), jax.random.bernoulli(keys[3], 0.6, (8, T))

    def loss(outputs, labels, mask):
        fn = partial(cross_entropy, labels=labels)
        if fused:
            return head.token_loss_sum(outputs, fn, mask=mask, chunk_tokens=4)[0].mean()
        return weighted(head.token_loss(outputs, fn, chunk_tokens=4), mask).mean()

    run = jax.jit(jax.value_and_grad(loss))
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
    rows, table = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("data", "tensor"))
    sharded = Outputs(jax.device_put(outputs.hidden, rows), jax.device_put(outputs.head, table), soft_cap=4.0)
    actual = run(sharded, jax.device_put(labels, rows), jax.device_put(mask, rows))
    assert actual[1].head.sharding.is_equivalent_to(table, 2)
    assert_close(actual, run(outputs, labels, mask), rtol=1e-4)


def test_gradients_survive_remat_and_scan(student, labels, mask):
    fn = partial(cross_entropy, labels=labels)

    def step(total, _, table):
        outputs = Outputs(student.hidden, table)
        return total + head.token_loss_sum(outputs, fn, mask=mask, chunk_tokens=4)[0].total, None

    def looped(table):
        return jax.lax.scan(jax.checkpoint(partial(step, table=table)), 0.0, None, length=3)[0]

    def dense(table):
        return 3.0 * weighted(reference.token_loss(Outputs(student.hidden, table), fn), mask).total

    assert_close(jax.grad(looped)(student.head), jax.grad(dense)(student.head), rtol=1e-4, atol=1e-5)


def test_a_gradient_through_a_keyword_is_refused_rather_than_lost(student, labels):
    def loss(scale):
        fn = lambda logits, *, labels, scale: scale * cross_entropy(logits, labels=labels)  # noqa: E731
        return jnp.sum(head.token_loss(student, partial(fn, labels=labels, scale=scale)))

    with pytest.raises(NotImplementedError, match="no gradient flows to keyword 'scale'"):
        jax.grad(loss)(jnp.float32(2.0))


def test_outputs_of_different_batches_are_refused(student, labels):
    shorter = Outputs(student.hidden[:, :5], student.head)
    with pytest.raises(ValueError, match=r"must agree in \[B, T\], got \[\(2, 11\), \(2, 5\)\]"):
        head.token_loss(student, shorter, partial(divergence, temperature=1.0))
    with pytest.raises(TypeError, match="one or more Outputs and then a function"):
        head.token_loss(partial(cross_entropy, labels=labels))
