"""Held-out bits per byte: a likelihood that models with different tokenizers, and compressors, can be compared by."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.eval.statistics import Estimate, ratio_interval
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The likelihood of a held-out text.

    Attributes:
      bits_per_byte: nats / (ln 2 * text_bytes).
      nats: negative log-likelihood of all labels except EOS.
      tokens: number of labels that count.
      eos_tokens: number of end-of-text labels that were left out.
      text_bytes: all bytes of the text.
      row_nats: [rows] float64, nats of each row of the loader, in order.
      row_tokens: [rows] int64, labels that count in each row.
    """

    bits_per_byte: float
    nats: float
    tokens: int
    eos_tokens: int
    text_bytes: int
    row_nats: np.ndarray = dataclasses.field(repr=False)
    row_tokens: np.ndarray = dataclasses.field(repr=False)


def bits_per_byte(model: Model, params: Params, batches: Iterable[LMBatch], *, text_bytes: int, eos_id: int | None) -> HeldOut:
    """Bits a model spends on each byte of a text.

    All bytes of the text count, and no end-of-text token does: a byte-level baseline or a compressor spends nothing on saying
    where the text ends either.

    Args:
      model: a language model.
      params: its parameters.
      batches: finite; every token of every document must be a label with `loss_mask` True (so a document begins with a BOS or EOS
        token as context), and rows keep their order from one call to the next.
      text_bytes: bytes of the documents in UTF-8, before tokenization.
      eos_id: end-of-text token to leave out; None when there is none among the labels.

    Returns:
      The likelihood and what it counts.

    Raises:
      ValueError: no batch, or no byte.
    """
    if text_bytes < 1:
        raise ValueError(f"text_bytes={text_bytes}: the held-out text is empty")
    # Reading a result would wait for it; the sums stay on the device until every batch is on its way.
    sums = [_row_sums(params, batch, apply=model.apply, eos_id=eos_id) for batch in batches]
    if not sums:
        raise ValueError("the held-out loader gave no batch; check the split and that its rows are not longer than its text")
    nats, tokens, eos_tokens = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*sums, strict=True))
    if not tokens.sum():
        raise ValueError(f"the held-out loader gave {len(tokens)} rows but no label that counts; check its loss mask")
    total = float(np.sum(nats, dtype=np.float64))
    return HeldOut(
        bits_per_byte=total / (math.log(2) * text_bytes),
        nats=total,
        tokens=int(tokens.sum()),
        eos_tokens=int(eos_tokens.sum()),
        text_bytes=text_bytes,
        row_nats=nats.astype(np.float64),
        row_tokens=tokens.astype(np.int64),
    )


def improvement(better: HeldOut, worse: HeldOut, *, confidence: float = 0.95) -> Estimate:
    """Bits per byte that one model saves over another on the same rows: worse - better, paired row by row.

    The interval says how much another held-out text of the same kind could change the difference. It knows nothing of other
    training seeds. Bytes are shared out to rows by their tokens.

    Raises:
      ValueError: the two did not score the same tokens, row by row.
    """
    if better.text_bytes != worse.text_bytes or not np.array_equal(better.row_tokens, worse.row_tokens):
        raise ValueError(
            f"the models scored different rows ({better.tokens} tokens of {better.text_bytes} bytes against {worse.tokens} of "
            f"{worse.text_bytes}); pair them on the same loader and tokenizer"
        )
    rows = better.row_tokens > 0  # filler rows are no observations
    bits = (worse.row_nats - better.row_nats)[rows] / math.log(2)
    row_bytes = better.row_tokens[rows] * (better.text_bytes / better.tokens)
    return ratio_interval(bits.tolist(), row_bytes.tolist(), confidence=confidence)


@partial(jax.jit, static_argnames=("apply", "eos_id"))
def _row_sums(
    params: Params, batch: LMBatch, *, apply: Callable[[Params, LMBatch], Outputs], eos_id: int | None
) -> tuple[Array, Array, Array]:
    """Nats, labels that count and EOS labels left out, each [B]."""
    nats = head.token_loss(apply(params, batch), partial(likelihood.cross_entropy, labels=batch.labels))  # [B, T]
    ends = batch.loss_mask & (batch.labels == (-1 if eos_id is None else eos_id))
    counts = batch.loss_mask & ~ends
    return jnp.sum(jnp.where(counts, nats, 0.0), axis=-1), jnp.sum(counts, axis=-1), jnp.sum(ends, axis=-1)
