"""A reward model learns to score the preferred response of a pair higher."""

from collections.abc import Callable, Mapping

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms, weighted
from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.losses.reward import bradley_terry_loss, pairwise_accuracy
from lmx.objectives import pair
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss
from lmx.objectives.sequence import sequence_rewards


def reward(
    apply: Callable[[Params, LMBatch], Outputs],
    *,
    loss: Callable[..., Array] = bradley_terry_loss,
    router: RouterLoss = NO_ROUTER_LOSS,
) -> Objective:
    """Mean over pairs of a loss on the rewards of the two responses.

    Args:
      apply: (params, batch) -> outputs of a model with a scalar head; see `sequence_rewards` for where the reward is read.
      loss: pure function of `chosen, rejected` ([B] float32 each, keywords) to [B].
      router: auxiliary losses of MoE routers.

    Returns:
      Objective on `PreferenceBatch`; pairs of which a response is empty don't count. Metrics, means over pairs: "accuracy" (ties
      half), "margin", "chosen_reward" and "rejected_reward".
    """

    def objective(params: Params, frozen: Mapping[str, Params], batch: PreferenceBatch, key: Array) -> tuple[Terms, Metrics]:
        del frozen, key
        both, counts = pair.interleave(batch), pair.counts(batch)
        outputs = apply(params, both)
        chosen, rejected = pair.separate(sequence_rewards(outputs, both))
        values = {
            "accuracy": pairwise_accuracy(chosen=chosen, rejected=rejected),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        router_terms, router_metrics = router.terms(outputs, both.segment_ids)
        metrics = {name: weighted(value, counts) for name, value in values.items()}
        term = weighted(loss(chosen=chosen, rejected=rejected), counts)
        return {"reward": (1.0, term), **router_terms}, {**metrics, **router_metrics}

    return objective
