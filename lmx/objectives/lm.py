"""Next-token prediction: pre-training and supervised fine-tuning, which differ in the batch's loss mask alone."""

from collections.abc import Callable, Mapping
from functools import partial

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss


def language_model(
    apply: Callable[[Params, LMBatch], Outputs], *, z_loss: float = 0.0, router: RouterLoss = NO_ROUTER_LOSS
) -> Objective:
    """Mean cross-entropy over the tokens of the loss mask.

    Args:
      apply: (params, batch) -> outputs.
      z_loss: coefficient of the squared log-normalizer of the logits.
      router: auxiliary losses of MoE routers.

    Returns:
      Objective on `LMBatch`. Metrics, means over the loss mask: "nll" (nats a token, without the z-loss), "accuracy" (top-1).
    """

    def objective(params: Params, frozen: Mapping[str, Params], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del frozen, key
        outputs = apply(params, batch)
        loss, metrics = head.token_loss_sum(
            outputs, partial(_cross_entropy, labels=batch.labels, z_loss=z_loss), mask=batch.loss_mask
        )
        router_terms, router_metrics = router.terms(outputs, batch.segment_ids)
        return {"cross_entropy": (1.0, loss), **router_terms}, {**metrics, **router_metrics}

    return objective


def _cross_entropy(logits: Array, *, labels: Array, z_loss: float) -> tuple[Array, dict[str, Array]]:
    loss = likelihood.cross_entropy(logits, labels=labels, z_loss=z_loss)
    return loss, {"nll": likelihood.cross_entropy(logits, labels=labels), "accuracy": likelihood.top1_hits(logits, labels)}
