"""Distillation over blocks of the vocabulary: against dense logits, and what it keeps in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmx.core.types import Outputs
from lmx.kernels import head
from lmx.kernels.head import reference, vocabulary
from lmx.losses import divergence, likelihood

B, T, V = 2, 7, 60
LABELS = jax.random.randint(jax.random.key(2), (B, T), 0, V)
MASK = jax.random.bernoulli(jax.random.key(3), 0.6, (B, T))


def outputs(seed, dim, *, vocab=V, soft_cap=None, scale=2.0):
    keys = jax.random.split(jax.random.key(seed), 2)
    hidden = scale * jax.random.normal(keys[0], (B, T, dim))
    return Outputs(hidden, jax.random.normal(keys[1], (vocab, dim)), soft_cap=soft_cap)


def dense(teacher, student, *, labels, alpha, temperature):
    """The same from whole logits, by autodiff."""
    teacher, student = reference.logits(teacher), reference.logits(student)
    kl = divergence.forward_kl(teacher, student, temperature=temperature)
    nll = likelihood.cross_entropy(student, labels=labels)
    accuracy = likelihood.top1_hits(student, labels)
    return (1 - alpha) * nll + alpha * kl, {"kl": kl, "nll": nll, "accuracy": accuracy}


def value_and_grads(loss, teacher, student, cotangent, **options):
    def total(student, teacher):
        losses, parts = loss(teacher, student, **options)
        return jnp.sum(losses * cotangent), (losses, parts)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(student, teacher)


def assert_close(actual, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **({"rtol": 2e-5, "atol": 2e-5} | tolerance)), actual, expected)


@pytest.mark.parametrize(
    ("alpha", "temperature", "caps", "blocks", "chunk"),
    [
        (1.0, 1.0, (None, None), 4, 3),
        (1.0, 2.0, (30.0, 5.0), 5, None),
        (0.3, 0.7, (None, 4.0), 7, 2),  # 7 does not divide 60, 2 does not divide 7
        (0.0, 1.0, (3.0, None), 1, 7),
        (0.5, 3.0, (2.0, 2.0), 60, 1),
    ],
)
def test_blocks_equal_dense_logits_in_values_and_gradients(alpha, temperature, caps, blocks, chunk):
    teacher, student = outputs(0, 3, soft_cap=caps[0]), outputs(1, 5, soft_cap=caps[1])
    cotangent = jax.random.normal(jax.random.key(4), (B, T))
    options = {"labels": LABELS, "alpha": alpha, "temperature": temperature}
    blocked = partial(head.distillation_loss, blocks=blocks, chunk_tokens=chunk)
    actual, expected = (value_and_grads(loss, teacher, student, cotangent, **options) for loss in (blocked, dense))
    assert_close(actual, expected)
    assert not any(np.any(x) for x in jax.tree.leaves(actual[1][1])), "no gradient flows to the teacher"


@jax.jit
def divergences(teacher, student):
    loss = partial(head.distillation_loss, labels=LABELS % 37, temperature=2.0, blocks=5, chunk_tokens=4)
    gradient = jax.grad(lambda x: jnp.sum(loss(x, x)[0]))(student)
    return loss(teacher, student)[0], loss(student, student)[0], gradient.head


@given(scale=st.sampled_from([0.0, 1.0, 30.0]), seed=st.integers(0, 99))
def test_a_divergence_is_at_least_zero_and_zero_of_a_model_with_itself(scale, seed):
    between, own, gradient = divergences(*(outputs(seed + i, 4, vocab=37, scale=scale) for i in range(2)))
    assert np.all(between >= -1e-4)
    np.testing.assert_allclose(own, 0.0, atol=1e-4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)


def test_the_sum_equals_the_masked_sum_and_masked_tokens_never_matter_even_as_nan():
    teacher, student = outputs(0, 3), outputs(1, 5, soft_cap=4.0)
    options = {"labels": LABELS, "alpha": 0.4, "temperature": 2.0}

    def total(student, loss_sum):
        summed, parts = loss_sum(student)
        return summed.mean(), (summed, parts)

    def blocked(student):
        return head.distillation_loss_sum(teacher, student, mask=MASK, blocks=3, **options)

    def chunked(student):
        def soft_and_hard(teacher, student, *, labels):
            nll = likelihood.cross_entropy(student, labels=labels)
            kl = divergence.forward_kl(teacher, student, temperature=2.0)
            return 0.6 * nll + 0.4 * kl, {"kl": kl, "nll": nll, "accuracy": likelihood.top1_hits(student, labels)}

        return head.token_loss_sum(teacher, student, partial(soft_and_hard, labels=LABELS), mask=MASK)

    results = [jax.value_and_grad(total, has_aux=True)(student, loss) for loss in (blocked, chunked)]
    assert_close(*results)
    bad = Outputs(jnp.where(MASK[..., None], student.hidden, jnp.nan), student.head, soft_cap=4.0)
    assert_close(jax.value_and_grad(total, has_aux=True)(bad, blocked), results[0])


def test_bfloat16_keeps_its_dtypes_and_comes_near_float32():
    teacher, student = outputs(0, 16, scale=0.5), outputs(1, 16, scale=0.5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), student)
    grad = lambda s: jax.grad(lambda s: jnp.sum(head.distillation_loss(teacher, s, labels=LABELS, blocks=4)[0]))(s)  # noqa: E731
    assert {x.dtype for x in jax.tree.leaves(grad(half))} == {jnp.dtype(jnp.bfloat16)}
    assert_close(jax.tree.map(lambda x: x.astype(jnp.float32), grad(half)), grad(student), rtol=0.1, atol=0.1)


def test_only_the_gradients_that_are_wanted_are_made():
    teacher, student = outputs(0, 3), outputs(1, 5)
    loss = lambda hidden, table: jnp.sum(head.distillation_loss(teacher, Outputs(hidden, table), labels=LABELS)[0])  # noqa: E731
    both = jax.grad(loss, argnums=(0, 1))(student.hidden, student.head)
    products = lambda argnums: str(jax.make_jaxpr(jax.grad(loss, argnums))(student.hidden, student.head)).count("dot_general")  # noqa: E731
    for argnum in range(2):
        assert_close(jax.grad(loss, argnum)(student.hidden, student.head), both[argnum])
        assert products(argnum) == products((0, 1)) - 1


def test_peak_memory_does_not_depend_on_the_vocabulary():
    def temporary_bytes(vocab):
        table = jax.ShapeDtypeStruct((vocab, 64), jnp.float32)
        hidden = jax.ShapeDtypeStruct((2, 256, 64), jnp.float32)

        def loss(hidden, table, teacher_hidden, teacher_table, labels):
            pair = Outputs(teacher_hidden, teacher_table), Outputs(hidden, table, soft_cap=30.0)
            return jnp.sum(head.distillation_loss(*pair, labels=labels)[0])

        labels = jax.ShapeDtypeStruct((2, 256), jnp.int32)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return step.lower(hidden, table, hidden, table, labels).compile().memory_analysis().temp_size_in_bytes

    small, medium, large = (temporary_bytes(vocab) for vocab in (8_192, 32_768, 256_000))
    assert medium <= 1.05 * small and large <= 1.05 * small
    assert large < 2 * 256 * 256_000 * 4 / 20, "far less than the logits of one of the models"


@pytest.mark.parametrize("vocab", [19, 8_192, 32_000, 49_152, 100_352, 128_256, 151_936, 152_064, 256_000, 256_128])
def test_every_vocabulary_of_the_families_is_cut_without_padding(vocab):
    blocks = vocabulary.num_blocks(vocab)
    assert vocab % blocks == 0 and min(vocab, 1_024) <= vocab // blocks <= 4_096


def test_the_result_does_not_depend_on_the_mesh():
    teacher, student = outputs(0, 4, vocab=64), outputs(1, 8, vocab=64, soft_cap=5.0)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))

    def put(x):
        axes = PartitionSpec("fsdp") if x.ndim == 3 else PartitionSpec("tensor", "fsdp")
        return jax.device_put(x, NamedSharding(mesh, axes))

    cotangent = jnp.ones((B, T))
    options = {"labels": LABELS, "alpha": 0.5, "temperature": 2.0, "blocks": 4}
    sharded = value_and_grads(head.distillation_loss, jax.tree.map(put, teacher), jax.tree.map(put, student), cotangent, **options)
    assert_close(sharded, value_and_grads(head.distillation_loss, teacher, student, cotangent, **options))


def test_models_of_different_vocabularies_and_impossible_blocks_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="have 61 and 60 rows"):
        head.distillation_loss(outputs(0, 3, vocab=61), outputs(1, 3), labels=LABELS)
    with pytest.raises(ValueError, match=r"blocks=61 must lie in 1\.\.60"):
        head.distillation_loss(outputs(0, 3), outputs(1, 3), labels=LABELS, blocks=61)
