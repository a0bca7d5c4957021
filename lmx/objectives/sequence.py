"""One number for each sequence: its log-probability, or its reward."""

from functools import partial

import jax.numpy as jnp

from lmx.core.types import Array, Outputs
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood, masking


def sequence_logprobs(outputs: Outputs, batch: LMBatch) -> Array:
    """[B] float32, the summed log-probability (nats) of each row's labels under its loss mask."""
    logprobs = head.token_loss(outputs, partial(likelihood.token_logprobs, labels=batch.labels))  # [B, T]
    return masking.sequence_sum(logprobs, batch.loss_mask)


def sequence_rewards(outputs: Outputs, batch: LMBatch) -> Array:
    """The scalar head at the last response token, which is the end-of-text token when the row holds one.

    Labels are shifted: the last True of `loss_mask` stands at the token *before* the response's last, whose label that is. So the
    hidden state is read one place further, at the last response token itself (at the row's end if the row was cut there).
    Padding behind the response changes nothing.

    Args:
      outputs: of a model with a scalar head.
      batch: one prompt and response a row; a row without response tokens has reward 0.

    Returns:
      [B] float32.

    Raises:
      ValueError: the model's head is not scalar.
    """
    if outputs.head.shape[0] != 1:
        raise ValueError(
            f"a reward needs a scalar head of 1 row, but the model's head has {outputs.head.shape[0]}; use ScalarHead()"
        )
    length = batch.loss_mask.shape[1]
    before_last = length - 1 - jnp.argmax(batch.loss_mask[:, ::-1], axis=1)  # [B]
    last = jnp.minimum(before_last + 1, length - 1)
    hidden = jnp.take_along_axis(outputs.hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [B, D]
    rewards = hidden @ outputs.head[0].astype(jnp.float32)
    return jnp.where(jnp.any(batch.loss_mask, axis=1), rewards, 0.0)
