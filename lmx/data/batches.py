"""The batch contracts, documented once. Ids are int32, masks bool; arrays are numpy on the host and jax on the device."""

import dataclasses

import jax
import numpy as np

from lmx.core.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LMBatch:
    """Packed token rows.

    Attributes:
      tokens: [B, T] int32 input ids.
      labels: [B, T] int32; `labels[t]` is the token after `tokens[t]` in the same document (already shifted).
      loss_mask: [B, T] bool, True where the label counts; False on padding and on the last token of a document.
      segment_ids: [B, T] int32; 0 on padding, documents of a row counted from 1.
      positions: [B, T] int32; restart at 0 in each document.
    """

    tokens: Array
    labels: Array
    loss_mask: Array
    segment_ids: Array
    positions: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
    """Pairs of responses to the same prompt, one pair a row, right-padded, unpacked.

    Attributes:
      chosen: LMBatch whose `loss_mask` covers the response's tokens, EOS included, and nothing else.
      rejected: likewise, of the same shape.
    """

    chosen: LMBatch
    rejected: LMBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherBatch:
    """Packed token rows with what was stored of a teacher's view of each token.

    Attributes:
      text: the rows.
      ids: [B, T, k] int32 token ids, the most probable first where they are a top k.
      values: [B, T, k] float32; log-probabilities of a top k, or how often each id was drawn.
      tail: [B, T] float32, log of the probability of all other tokens; 0 where ids were drawn.
    """

    text: LMBatch
    ids: Array
    values: Array
    tail: Array


def lm_batch_spec(batch_size: int, length: int) -> LMBatch:
    """Abstract LMBatch ([batch_size, length] jax.ShapeDtypeStruct leaves), enough to build and compile a step."""
    ids = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    mask = jax.ShapeDtypeStruct((batch_size, length), np.bool_)
    return LMBatch(tokens=ids, labels=ids, loss_mask=mask, segment_ids=ids, positions=ids)  # type: ignore[arg-type]


def teacher_batch_spec(batch_size: int, length: int, k: int) -> TeacherBatch:
    """Abstract TeacherBatch with `k` stored ids a token."""
    arrays = {
        "ids": jax.ShapeDtypeStruct((batch_size, length, k), np.int32),
        "values": jax.ShapeDtypeStruct((batch_size, length, k), np.float32),
        "tail": jax.ShapeDtypeStruct((batch_size, length), np.float32),
    }
    return TeacherBatch(text=lm_batch_spec(batch_size, length), **arrays)  # type: ignore[arg-type]


def preference_batch_spec(batch_size: int, length: int) -> PreferenceBatch:
    """Abstract PreferenceBatch of `batch_size` pairs, `length` tokens each."""
    return PreferenceBatch(chosen=lm_batch_spec(batch_size, length), rejected=lm_batch_spec(batch_size, length))


def without_label(batch: LMBatch, label: int) -> LMBatch:
    """The batch with one label masked out of the loss: bits per byte count no EOS."""
    return dataclasses.replace(batch, loss_mask=batch.loss_mask & (batch.labels != label))
