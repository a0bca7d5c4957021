"""A policy learns from pairs of responses of which one is preferred, held to a frozen reference."""

from collections.abc import Callable, Mapping

import jax

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms, weighted
from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.losses.reward import pairwise_accuracy
from lmx.objectives import pair
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss
from lmx.objectives.sequence import sequence_logprobs

Apply = Callable[[Params, LMBatch], Outputs]


def preference(
    apply: Apply, reference_apply: Apply, *, loss: Callable[..., Array], router: RouterLoss = NO_ROUTER_LOSS
) -> Objective:
    """Mean over pairs of a loss on the responses' log-probabilities under policy and reference.

    `preference(model.apply, model.apply, loss=partial(dpo_loss, beta=0.1))`. The log-probability of a response is the sum over its
    tokens, not their mean: the implicit reward is a log-ratio of whole sequences.

    Args:
      apply: (params, batch) -> outputs of the policy.
      reference_apply: likewise of the reference; its parameters are `frozen["reference"]`.
      loss: pure function of `policy_chosen, policy_rejected, reference_chosen, reference_rejected` ([B] float32 each, by keyword)
        to [B], such as `functools.partial(losses.preference.dpo_loss, beta=0.1)`.
      router: auxiliary losses of the policy's MoE routers.

    Returns:
      Objective on `PreferenceBatch`; pairs of which a response is empty don't count. Metrics, means over pairs: "accuracy" (the
      chosen response has the higher implicit reward, ties half), "margin", "chosen_reward" and "rejected_reward" (log-ratios to the
      reference in nats, that is implicit rewards in units of beta), "chosen_logprob" and "rejected_logprob".
    """

    def objective(params: Params, frozen: Mapping[str, Params], batch: PreferenceBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        both, counts = pair.interleave(batch), pair.counts(batch)
        policy = apply(params, both)
        reference = jax.lax.stop_gradient(reference_apply(frozen["reference"], both))
        policy_chosen, policy_rejected = pair.separate(sequence_logprobs(policy, both))
        reference_chosen, reference_rejected = pair.separate(sequence_logprobs(reference, both))
        losses = loss(
            policy_chosen=policy_chosen,
            policy_rejected=policy_rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
        )
        chosen_reward, rejected_reward = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        values = {
            "accuracy": pairwise_accuracy(chosen=chosen_reward, rejected=rejected_reward),
            "margin": chosen_reward - rejected_reward,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
            "chosen_logprob": policy_chosen,
            "rejected_logprob": policy_rejected,
        }
        router_terms, router_metrics = router.terms(policy, both.segment_ids)
        metrics = {name: weighted(value, counts) for name, value in values.items()}
        return {"preference": (1.0, weighted(losses, counts)), **router_terms}, {**metrics, **router_metrics}

    return objective
