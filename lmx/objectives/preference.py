"""A policy learns from pairs of responses of which one is preferred, held to a frozen reference."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lmx.core.types import Array, Metrics, Objective, Outputs, Params, Terms, Weighted, weighted
from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.losses.reward import pairwise_accuracy
from lmx.objectives import pair
from lmx.objectives.router import NO_ROUTER_LOSS, RouterLoss
from lmx.objectives.sequence import sequence_logprobs

Apply = Callable[[Params, LMBatch], Outputs]


def preference(
    apply: Apply,
    reference_apply: Apply,
    *,
    loss: Callable[..., Array],
    nll_weight: float = 0.0,
    router: RouterLoss = NO_ROUTER_LOSS,
) -> Objective:
    """Mean over pairs of a loss on the responses' log-probabilities under policy and reference.

    `preference(model.apply, model.apply, loss=partial(dpo_loss, beta=0.1))`. The log-probability of a response is the sum over its
    tokens, not their mean: the implicit reward is a log-ratio of whole sequences.

    Args:
      apply: (params, batch) -> outputs of the policy.
      reference_apply: likewise of the reference; its parameters are `frozen["reference"]`.
      loss: pure function of `policy_chosen, policy_rejected, reference_chosen, reference_rejected` ([B] float32 each, by keyword)
        to [B], such as `functools.partial(losses.preference.dpo_loss, beta=0.1)`.
      nll_weight: coefficient of the chosen responses' cross-entropy, mean over their tokens; it holds up their likelihood, which
        the margin alone lets fall as long as that of the rejected falls faster (0.2 in Llama 3.1).
      router: auxiliary losses of the policy's MoE routers.

    Returns:
      Objective on `PreferenceBatch`; pairs of which a response is empty don't count. Metrics, means over pairs: "accuracy" (the
      chosen response has the higher implicit reward, ties half), "margin", "chosen_reward" and "rejected_reward" (log-ratios to the
      reference in nats, that is implicit rewards in units of beta), "chosen_logprob" and "rejected_logprob".

    Reference: Rafailov et al. (2023), arXiv:2305.18290; the cross-entropy term as in Dubey et al. (2024), arXiv:2407.21783,
      section 4.1.4, after Pang et al. (2024), arXiv:2404.19733.
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
        terms: Terms = {"preference": (1.0, weighted(losses, counts)), **router_terms}
        if nll_weight:
            chosen_tokens = weighted(jnp.sum(batch.chosen.loss_mask, axis=1, dtype=jnp.float32), counts).total
            terms["nll"] = (nll_weight, Weighted(weighted(-policy_chosen, counts).total, chosen_tokens))
        return terms, {**metrics, **router_metrics}

    return objective
