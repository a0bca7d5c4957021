"""The output head: logits and per-token losses that never hold a whole [B, T, V]."""

from lmx.kernels.head.api import distillation_loss, distillation_loss_sum, logits, token_loss, token_loss_sum

__all__ = ["distillation_loss", "distillation_loss_sum", "logits", "token_loss", "token_loss_sum"]
