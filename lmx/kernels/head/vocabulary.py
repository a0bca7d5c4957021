"""Distillation over a large vocabulary, a block of the vocabulary at a time: memory does not depend on V.

Logits of a block of rows of both tables are made, folded into a few numbers a token, and forgotten. The backward pass makes them
again: six products a block in all (two forward, two again, two for the gradient), where `chunked.loss_sum` takes four over chunks
of tokens that hold all V logits. Nothing of size V is kept but the tables and the gradient itself.

Block j holds rows j, j + n, j + 2n, ... of a table: where the vocabulary is sharded, every device has its share of every block.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lmx.core.types import Array, PyTree
from lmx.kernels.head.chunked import Inputs, Needs, instantiate, join, primals, split
from lmx.kernels.head.reference import cap

BLOCK_ROWS = 4096  # rows of a table in one block, at most
_NOWHERE = -1e30  # logit of a padding row: far below all others, and finite


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static of the loss.

    Attributes:
      alpha: share of the teacher.
      temperature: T of the softened distributions.
      soft_caps: the teacher's and the student's.
      vocab_size: V.
      blocks: n, blocks of the vocabulary.
      chunk: tokens of a row in one chunk.
    """

    alpha: float
    temperature: float
    soft_caps: tuple[float | None, ...]
    vocab_size: int
    blocks: int
    chunk: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sums:
    """What is known of a token after some blocks, [...] float32 each; sums are relative to their maximum.

    Attributes:
      teacher_max: of the teacher's softened logits.
      teacher_sum: of their exponentials.
      cross: sum of the same exponentials times (teacher's - student's softened logit).
      student_max: of the student's logits, not softened.
      soft_sum: of the exponentials of the student's softened logits.
      hard_sum: of the exponentials of the student's logits.
      label: the student's logit of the label.
    """

    teacher_max: Array
    teacher_sum: Array
    cross: Array
    student_max: Array
    soft_sum: Array
    hard_sum: Array
    label: Array


def num_blocks(vocab_size: int, rows: int = BLOCK_ROWS) -> int:
    """Into how many blocks of at most `rows` rows to cut a table of V rows.

    A divisor of V if there is one that leaves blocks of at least a quarter of `rows`, the one whose blocks divide best by powers
    of two: so that they divide over devices as well. Else the last rows of some blocks are padding, in a padded copy of the table.
    """
    fewest = -(-vocab_size // rows)
    fitting = [n for n in range(fewest, 4 * fewest + 1) if vocab_size % n == 0]
    return max(fitting, key=lambda n: (math.gcd(vocab_size // n, 2**30), -n), default=fewest)


def distillation_losses(plan: Plan, inputs: Inputs) -> tuple[Array, dict[str, Array]]:
    """The losses [B, T], differentiable with respect to the student, and "kl", "nll" and "accuracy" [B, T] without gradient.

    Args:
      plan: static numbers.
      inputs: hidden states and tables of teacher and student, in this order, and `cut["labels"]`, [B, T] int32.
    """
    run = jax.custom_vjp(lambda inputs: _values(plan, inputs)[0])
    run.defvjp(partial(_forward, plan), partial(_backward, plan), symbolic_zeros=True)
    return run(inputs)


def _values(plan: Plan, inputs: Inputs) -> tuple[tuple[Array, dict[str, Array]], tuple[Array, Array, Array]]:
    """`(losses, metrics)`, and the normalizers of teacher, softened student and student that the backward pass needs."""
    batch, length = inputs.hidden[0].shape[:2]
    tokens = split((inputs.hidden, inputs.cut["labels"]), plan.chunk)
    tables = _tables(plan, inputs)

    def fold(sums: Any, block: Array) -> tuple[PyTree, None]:
        heads, ids = _block(plan, inputs, tables, block)

        def body(_: Any, item: Any) -> tuple[None, _Sums]:
            sums, (hidden, labels) = item
            teacher, student, _ = _logits(plan, hidden, heads, ids)
            return None, _fold(plan, sums, teacher, student, labels[..., None] == ids)

        return jax.lax.scan(body, None, (sums, tokens))[1], None

    shape = (tokens[1].shape[0], batch, plan.chunk)
    none, zero = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
    start = _Sums(none, zero, zero, none, zero, zero, zero)
    sums, _ = jax.lax.scan(fold, start, jnp.arange(plan.blocks))
    sums = join(sums, length)
    teacher = sums.teacher_max + jnp.log(sums.teacher_sum)
    soft = sums.student_max / plan.temperature + jnp.log(sums.soft_sum)
    hard = sums.student_max + jnp.log(sums.hard_sum)
    kl = plan.temperature**2 * (sums.cross / sums.teacher_sum - teacher + soft)
    nll = hard - sums.label
    accuracy = (sums.label >= sums.student_max).astype(jnp.float32)
    losses = (1 - plan.alpha) * nll + plan.alpha * kl
    return (losses, {"kl": kl, "nll": nll, "accuracy": accuracy}), (teacher, soft, hard)


def _fold(plan: Plan, sums: _Sums, teacher: Array, student: Array, is_label: Array) -> _Sums:
    """The sums with the logits [..., v] of one more block."""
    teacher = teacher / plan.temperature
    teacher_max = jnp.maximum(sums.teacher_max, jnp.max(teacher, axis=-1))
    student_max = jnp.maximum(sums.student_max, jnp.max(student, axis=-1))
    weights = jnp.exp(teacher - teacher_max[..., None])
    teacher_scale = jnp.exp(sums.teacher_max - teacher_max)
    below = student - student_max[..., None]
    rise = sums.student_max - student_max
    return _Sums(
        teacher_max=teacher_max,
        teacher_sum=sums.teacher_sum * teacher_scale + jnp.sum(weights, axis=-1),
        cross=sums.cross * teacher_scale + jnp.sum(weights * (teacher - student / plan.temperature), axis=-1),
        student_max=student_max,
        soft_sum=sums.soft_sum * jnp.exp(rise / plan.temperature) + jnp.sum(jnp.exp(below / plan.temperature), axis=-1),
        hard_sum=sums.hard_sum * jnp.exp(rise) + jnp.sum(jnp.exp(below), axis=-1),
        label=sums.label + jnp.sum(jnp.where(is_label, student, 0.0), axis=-1),
    )


def _forward(plan: Plan, inputs: Inputs) -> tuple[PyTree, PyTree]:
    inputs, needs = primals(inputs)
    results, normalizers = _values(plan, inputs)
    return results, (inputs, normalizers, needs)


def _backward(plan: Plan, residuals: tuple[Inputs, PyTree, Needs], cotangents: PyTree) -> tuple[Inputs]:
    """Gradients of the student, block by block; tokens of cotangent 0 are computed at a zero hidden state and give none."""
    inputs, normalizers, needs = residuals
    seeds = instantiate(cotangents[0])
    length = seeds.shape[1]
    hidden = (inputs.hidden[0], jnp.where((seeds != 0)[..., None], inputs.hidden[1], 0))
    tokens = split((hidden, inputs.cut["labels"], seeds, normalizers), plan.chunk)
    tables = _tables(plan, inputs)
    hidden_grad = jnp.zeros(tokens[0][1].shape, jnp.float32) if needs.hidden[1] else None
    head_grad = jnp.zeros(tables[1].shape, tables[1].dtype) if needs.head[1] else None

    def body(heads: tuple[Array, ...], ids: Array, rows_grad: Array | None, item: Any) -> tuple[PyTree, PyTree]:
        grad, (hidden, labels, seed, normalizers) = item
        teacher, student, slope_of_cap = _logits(plan, hidden, heads, ids)
        slopes = _slopes(plan, teacher, student, normalizers, labels[..., None] == ids) * slope_of_cap
        slopes = jnp.where((seed != 0)[..., None], seed[..., None] * slopes, 0.0).astype(hidden[1].dtype)  # [B, c, v]
        wide = partial(jnp.einsum, preferred_element_type=jnp.float32)
        grad = None if grad is None else grad + wide("BCV,VD->BCD", slopes, heads[1])
        rows_grad = None if rows_grad is None else rows_grad + wide("BCD,BCV->DV", hidden[1], slopes)
        return rows_grad, grad

    def over_block(grads: Any, block: Array) -> tuple[PyTree, None]:
        hidden_grad, head_grad = grads
        heads, ids = _block(plan, inputs, tables, block)
        start = None if head_grad is None else jnp.zeros(heads[1].shape[::-1], jnp.float32)  # [D, v], as in `chunked`
        rows_grad, hidden_grad = jax.lax.scan(partial(body, heads, ids), start, (hidden_grad, tokens))
        if head_grad is not None:
            assert rows_grad is not None  # both or none
            head_grad = jax.lax.dynamic_update_index_in_dim(head_grad, rows_grad.T.astype(head_grad.dtype), block, axis=1)
        return (hidden_grad, head_grad), None

    (hidden_grad, head_grad), _ = jax.lax.scan(over_block, (hidden_grad, head_grad), jnp.arange(plan.blocks))
    if hidden_grad is not None:
        hidden_grad = join(hidden_grad, length).astype(inputs.hidden[1].dtype)
    if head_grad is not None:
        head_grad = head_grad.reshape(-1, head_grad.shape[-1])[: plan.vocab_size]
    return (Inputs((None, hidden_grad), (None, head_grad), None, None),)  # type: ignore[arg-type]  # None: no cotangent


def _slopes(plan: Plan, teacher: Array, student: Array, normalizers: tuple[Array, ...], is_label: Array) -> Array:
    """d loss / d student's capped logit, [..., v]."""
    of_teacher, of_soft, of_hard = (x[..., None] for x in normalizers)
    slopes = jnp.zeros(student.shape, jnp.float32)
    if plan.alpha:
        softened = jnp.exp(student / plan.temperature - of_soft) - jnp.exp(teacher / plan.temperature - of_teacher)
        slopes += plan.alpha * plan.temperature * softened
    if plan.alpha != 1:
        slopes += (1 - plan.alpha) * (jnp.exp(student - of_hard) - is_label)
    return slopes


def _tables(plan: Plan, inputs: Inputs) -> tuple[Array, ...]:
    """[V / n, n, D] each: block j is the slice [:, j]. No copy, unless V had to be padded."""

    def table(head: Array) -> Array:
        rows = -(-plan.vocab_size // plan.blocks)
        missing = rows * plan.blocks - plan.vocab_size
        padded = jnp.pad(head, ((0, missing), (0, 0))) if missing else head
        return padded.reshape(rows, plan.blocks, head.shape[1])

    return tuple(table(head) for head in inputs.head)


def _block(plan: Plan, inputs: Inputs, tables: tuple[Array, ...], block: Array) -> tuple[tuple[Array, ...], Array]:
    """Rows [v, D] of both tables in the dtypes of their hidden states, and their ids [v]; -1 for padding rows."""
    heads = tuple(
        jax.lax.dynamic_index_in_dim(table, block, axis=1, keepdims=False).astype(hidden.dtype)
        for table, hidden in zip(tables, inputs.hidden, strict=True)
    )
    ids = jnp.arange(tables[0].shape[0]) * plan.blocks + block
    return heads, jnp.where(ids < plan.vocab_size, ids, -1)


def _logits(plan: Plan, hidden: tuple[Array, ...], heads: tuple[Array, ...], ids: Array) -> tuple[Array, Array, Array]:
    """Logits [B, c, v] float32 of teacher and student, and the slope of the student's soft cap."""
    products: Callable[..., Array] = partial(jnp.einsum, "BCD,VD->BCV", preferred_element_type=jnp.float32)
    teacher, student = (cap(products(h, w), c) for h, w, c in zip(hidden, heads, plan.soft_caps, strict=True))
    soft_cap = plan.soft_caps[1]
    slope = jnp.ones(()) if soft_cap is None else 1 - jnp.square(student / soft_cap)
    if plan.vocab_size % plan.blocks:
        teacher, student = (jnp.where(ids >= 0, x, _NOWHERE) for x in (teacher, student))
    return teacher, student, slope
