"""Where the policy losses lead, by exact expectations: reference * exp(reward / beta), and previous * exp(A / gamma) a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.losses import advantages, divergence, kl, policy
from tests.fixtures import tabular

REWARDS, BETA = np.array([1.0, 0.0, -1.0]), 0.5
REFERENCE = np.log([0.2, 0.5, 0.3])
OPTIMUM = [0.732165, 0.247720, 0.020115]
# All groups of two arms: index [9, 2]. Their leave-one-out advantages average to reward less mean, exactly.
GROUPS = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), axis=-1).reshape(9, 2)

pytestmark = pytest.mark.usefixtures("float64")


def descend(loss, logits, *, steps, rate):
    """Plain gradient descent."""
    return jax.lax.fori_loop(0, steps, lambda _, z: z - rate * jax.grad(loss)(z), logits)


def sampled(previous):
    """Probabilities [9] of the groups that `previous` samples, and the advantages [9, 2] in them."""
    own = advantages.shaped_rewards(jnp.asarray(REWARDS), policy=previous, reference=jnp.asarray(REFERENCE), beta=BETA)
    return jnp.exp(previous[GROUPS].sum(axis=1)), advantages.leave_one_out(own[GROUPS])


def iterate(losses_of, *, iterations, inner, rate, start=REFERENCE):
    """Log-probabilities after each iteration [n, 3]; `losses_of(logits, previous, advantages)` gives a loss for each response."""

    def iteration(previous, _):
        probabilities, own = sampled(previous)
        loss = lambda z: probabilities @ losses_of(z, previous, own.ravel()).reshape(9, 2).mean(axis=1)  # noqa: E731
        after = jax.nn.log_softmax(descend(loss, previous, steps=inner, rate=rate))
        return after, after

    return jax.jit(lambda: jax.lax.scan(iteration, jnp.asarray(start), length=iterations)[1])()


def arms(logits):
    """[18], of each response in the groups its log-probability."""
    return jax.nn.log_softmax(logits)[GROUPS].ravel()


def mirror_descent(estimator, gamma):
    def losses(logits, previous, own):
        values = {"policy": arms(logits), "previous": arms(previous)}
        if estimator == "seq_k3":
            previous_kl = kl.seq_k3(**values)
        else:
            previous_kl = jnp.broadcast_to(divergence.reverse_kl(previous, logits), (18,))
        return policy.mirror_descent_loss(**values, advantages=own, previous_kl=previous_kl, gamma=gamma)

    return losses


@pytest.mark.parametrize("estimator", ["full_vocab", "seq_k3"])
def test_exact_mdloo_steps_are_those_of_the_spec(estimator):
    steps = iterate(mirror_descent(estimator, gamma=1.0), iterations=4, inner=1500, rate=1.0)
    known = [
        (0.471098, 0.433268, 0.095634),
        (0.612555, 0.341699, 0.045746),
        (0.675799, 0.293590, 0.030611),
        (0.704889, 0.270245, 0.024866),
    ]
    np.testing.assert_allclose(jnp.exp(steps), known, atol=2e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_mdloo_converges_to_the_optimum_by_one_less_beta_over_gamma_a_step(gamma):
    steps = np.concatenate([REFERENCE[None], iterate(mirror_descent("full_vocab", gamma), iterations=14, inner=2500, rate=1.0)])
    np.testing.assert_allclose(np.exp(steps[-1]), OPTIMUM, atol=1e-4)
    error = steps - (REFERENCE + REWARDS / BETA)
    error -= error.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(error[1:4], (1 - BETA / gamma) * error[:3], atol=1e-5)


def test_rloo_on_shaped_rewards_converges_to_the_optimum():
    losses = lambda logits, previous, own: policy.reinforce_loss(policy=arms(logits), advantages=own)  # noqa: E731
    policies = iterate(losses, iterations=1500, inner=1, rate=2.0)
    np.testing.assert_allclose(jnp.exp(policies[-1]), OPTIMUM, atol=1e-5)


def test_ppo_on_shaped_rewards_converges_to_the_optimum():
    def losses(logits, previous, own):
        return policy.clipped_surrogate_loss(policy=arms(logits), previous=arms(previous), advantages=own)

    policies = iterate(losses, iterations=800, inner=4, rate=1.0)
    np.testing.assert_allclose(jnp.exp(policies[-1]), OPTIMUM, atol=1e-3)


def test_a_mirror_descent_step_on_sequences_ends_at_previous_times_exp_of_advantage_over_gamma():
    """The nine sequences of the tabular model: the tables can hold any distribution over them."""
    previous, gamma = tabular.tables(0), 0.8
    q, own = tabular.sequence_logprobs(previous), jnp.asarray(np.random.default_rng(3).normal(size=9))

    def loss(params):
        p = tabular.sequence_logprobs(params)
        previous_kl = kl.seq_k3(policy=p, previous=q)
        losses = policy.mirror_descent_loss(policy=p, previous=q, advantages=own, previous_kl=previous_kl, gamma=gamma)
        return tabular.expectation(q, losses)

    def step(_, params):
        return jax.tree.map(lambda x, grad: x - 1.5 * grad, params, jax.grad(loss)(params))

    after = jax.jit(lambda: tabular.sequence_logprobs(jax.lax.fori_loop(0, 4000, step, previous)))()
    distance = 0.5 * jnp.abs(jnp.exp(after) - jax.nn.softmax(q + own / gamma)).sum()
    assert distance < 1e-4


def test_the_optimum_and_its_kl_are_those_of_the_spec():
    closed = jax.nn.log_softmax(REFERENCE + REWARDS / BETA)
    np.testing.assert_allclose(jnp.exp(closed), OPTIMUM, atol=1e-6)
    assert tabular.kl(closed, jnp.asarray(REFERENCE)) == pytest.approx(0.721790, abs=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(REWARDS / BETA), [0.866813, 0.117310, 0.015876], atol=1e-6)
