from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from lmx.losses import masking
from lmx.losses.preference import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    robust_dpo_loss,
    simpo_loss,
)
from lmx.losses.reward import bradley_terry_loss

LOGPROBS = st.floats(-50, 0, width=32)
NAMES = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")


def on_pair(loss, *values: float, **options: float) -> jax.Array:
    return loss(**{name: jnp.array([value], jnp.float32) for name, value in zip(NAMES, values, strict=True)}, **options)[0]


dpo, robust_dpo, ipo = (partial(on_pair, loss) for loss in (dpo_loss, robust_dpo_loss, ipo_loss))


@given(LOGPROBS, LOGPROBS, st.floats(0.01, 5), st.floats(0, 0.49))
def test_dpo_is_log2_when_policy_equals_reference(chosen, rejected, beta, smoothing):
    assert dpo(chosen, rejected, chosen, rejected, beta=beta, label_smoothing=smoothing) == pytest.approx(np.log(2), abs=1e-6)


def test_dpo_of_a_known_margin():
    assert dpo(-1.0, -1.3, -2.0, -2.0, beta=0.1) == pytest.approx(0.678260, abs=1e-6)


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(0, 0.49))
def test_swapping_the_responses_mirrors_the_smoothing(a, b, c, d, smoothing):
    loss = float(dpo(a, b, c, d, beta=0.1, label_smoothing=smoothing))
    assert dpo(b, a, d, c, beta=0.1, label_smoothing=1 - smoothing) == pytest.approx(loss, rel=1e-5)


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(-10, 10))
def test_a_constant_on_both_policy_logprobs_changes_nothing(a, b, c, d, shift):
    assert dpo(a + shift, b + shift, c, d, beta=0.1) == pytest.approx(float(dpo(a, b, c, d, beta=0.1)), abs=1e-5)


def test_the_gradient_at_the_reference_is_beta_times_smoothing_less_a_half():
    grad = jax.grad(lambda chosen: dpo(chosen, -2.0, -1.0, -2.0, beta=0.1, label_smoothing=0.2))(-1.0)
    assert grad == pytest.approx(0.1 * (0.2 - 0.5), abs=1e-7)


def test_the_smoothed_optimum_is_the_logit_of_the_smoothing():
    margin = np.log(0.8 / 0.2) / 0.1
    grad = jax.grad(lambda chosen: dpo(chosen, 0.0, 0.0, 0.0, beta=0.1, label_smoothing=0.2))(float(margin))
    assert grad == pytest.approx(0.0, abs=1e-7)


def test_no_gradient_reaches_the_reference():
    grads = jax.grad(lambda c, r: dpo(-1.0, -2.0, c, r, beta=0.1), argnums=(0, 1))(-1.5, -1.0)
    assert grads == (0.0, 0.0)


def test_large_margins_stay_finite():
    value, grad = jax.value_and_grad(lambda chosen: dpo(chosen, 0.0, 0.0, 0.0, beta=1.0))(-1e4)
    assert value == pytest.approx(1e4) and grad == pytest.approx(-1.0)


def test_permuting_the_pairs_permutes_the_losses():
    values = dict(zip(NAMES, jax.random.normal(jax.random.key(0), (4, 5)), strict=True))
    order = jnp.array([3, 0, 4, 1, 2])
    permuted = dpo_loss(**{name: value[order] for name, value in values.items()}, beta=0.1)
    np.testing.assert_array_equal(permuted, dpo_loss(**values, beta=0.1)[order])


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(0, 0.45))
def test_robust_dpo_over_the_flips_is_expected_to_be_dpo_on_true_labels(a, b, c, d, rate):
    kept, flipped = (float(robust_dpo(*pair, beta=0.1, flip_rate=rate)) for pair in ((a, b, c, d), (b, a, d, c)))
    assert (1 - rate) * kept + rate * flipped == pytest.approx(float(dpo(a, b, c, d, beta=0.1)), abs=1e-4)


@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS)
def test_robust_dpo_without_flips_is_dpo(a, b, c, d):
    assert robust_dpo(a, b, c, d, beta=0.1, flip_rate=0.0) == dpo(a, b, c, d, beta=0.1)


def test_ipo_of_a_known_margin():
    assert ipo(-1.0, -1.3, -2.0, -2.0, tau=0.1) == pytest.approx(22.09, rel=1e-6)


@given(LOGPROBS, LOGPROBS, st.floats(0.01, 5))
def test_ipo_is_the_squared_target_when_policy_equals_reference(chosen, rejected, tau):
    assert ipo(chosen, rejected, chosen, rejected, tau=tau) == pytest.approx(1 / (4 * tau**2), rel=1e-5)


def test_ipo_has_a_finite_optimum_even_for_sure_preferences():
    grad = jax.grad(lambda chosen: ipo(chosen, -1.0, -1.0, -1.0, tau=0.1))
    assert grad(4.0) == pytest.approx(0.0, abs=1e-5)  # margin 5 = 1 / (2 tau)
    assert grad(3.9) < 0 < grad(4.1)
    assert jax.grad(lambda chosen: dpo(chosen, -1.0, -1.0, -1.0, beta=0.1))(4.1) < 0


def test_ipo_of_noisy_preferences_wants_the_excess_probability_over_tau():
    won, tau = 0.7, 0.2
    margin = float((won - 0.5) / tau)
    expected = lambda h: won * ipo(h, 0.0, 0.0, 0.0, tau=tau) + (1 - won) * ipo(0.0, h, 0.0, 0.0, tau=tau)  # noqa: E731
    assert jax.grad(expected)(margin) == pytest.approx(0.0, abs=1e-6)


def test_simpo_is_bradley_terry_on_scaled_mean_logprobs_with_a_margin():
    chosen, rejected = jax.random.normal(jax.random.key(0), (2, 5))
    loss = simpo_loss(policy_chosen=chosen, policy_rejected=rejected, beta=2.0, margin=0.5)
    plain = bradley_terry_loss(chosen=2 * chosen, rejected=2 * rejected, margin=jnp.full(5, 0.5))
    np.testing.assert_allclose(loss, plain, rtol=1e-6)


def test_mean_logprobs_make_a_loss_blind_to_the_length_of_equally_likely_tokens():
    token, mask = jnp.full((1, 6), -1.5), jnp.arange(6)[None] < jnp.array([[2], [6]])
    short, long = (masking.sequence_mean(token, row[None]) for row in mask)
    loss = partial(simpo_loss, beta=2.0, margin=0.0)
    assert loss(policy_chosen=short, policy_rejected=long)[0] == pytest.approx(np.log(2))
    sums = [masking.sequence_sum(token, row[None]) for row in mask]
    assert loss(policy_chosen=sums[0], policy_rejected=sums[1])[0] < 0.01


def test_tokens_of_the_format_change_dpo_only_where_they_are_not_masked_out():
    """Policy and reference agree but on token 9, which ends every response."""
    labels, mask = jnp.array([[3, 9], [4, 9]]), jnp.ones((2, 2), bool)
    policy, reference = jnp.array([[-1.0, -0.1], [-2.0, -7.0]]), jnp.array([[-1.0, -3.0], [-2.0, -3.0]])

    def loss(mask):
        rows = (masking.sequence_sum(x, mask) for x in (policy, reference))
        return dpo(*(float(row) for sums in rows for row in sums), beta=0.1)

    assert loss(masking.without_tokens(mask, labels, token_ids=[9])) == pytest.approx(np.log(2))
    assert loss(mask) < np.log(2) - 0.1


def kto(gain, *, desirable, reference_point=0.0, **options):
    values = {"policy": jnp.atleast_1d(gain), "reference": jnp.zeros(1), "desirable": jnp.array([desirable])}
    return kto_loss(**values, reference_point=jnp.float32(reference_point), **{"beta": 0.1, **options})[0]


def test_kto_is_half_the_weight_where_policy_equals_reference():
    assert kto(0.0, desirable=True) == kto(0.0, desirable=False) == 0.5
    assert kto(0.0, desirable=True, desirable_weight=1.5) == 0.75
    assert kto(0.0, desirable=False, undesirable_weight=1.2) == pytest.approx(0.6)


@given(st.floats(-50, 50, width=32), st.floats(0, 5, width=32))
def test_kto_of_good_and_bad_add_up_to_their_weight_and_are_the_formulas_of_the_paper(gain, point):
    good, bad = (float(kto(gain, desirable=kind, reference_point=point)) for kind in (True, False))
    assert good + bad == pytest.approx(1.0, abs=1e-6)
    assert good == pytest.approx(1 - 1 / (1 + np.exp(-0.1 * (gain - point))), abs=1e-6)


def test_kto_raises_good_responses_lowers_bad_ones_and_saturates():
    grads = {kind: jax.grad(lambda gain, k=kind: kto(gain, desirable=k)) for kind in (True, False)}
    assert grads[True](0.0) == pytest.approx(-0.1 / 4) and grads[False](0.0) == pytest.approx(0.1 / 4)
    assert abs(grads[True](200.0)) < 1e-6 and abs(grads[False](-200.0)) < 1e-6


def test_the_reference_point_of_kto_is_the_mean_log_ratio_cut_at_zero_without_gradient():
    policy, reference = jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([-2.0, -1.5, 0.0])
    mask = jnp.array([True, True, False])
    point = lambda p: kto_reference_point(policy=p, reference=reference, mask=mask)  # noqa: E731
    assert point(policy) == pytest.approx(0.25)
    assert point(policy - 5) == 0
    np.testing.assert_array_equal(jax.grad(point)(policy), np.zeros(3))
    through = jax.grad(lambda p: kto(0.0, desirable=True, reference_point=p))(1.0)
    assert through == 0


def test_permuting_the_pairs_permutes_every_loss():
    values = dict(zip(NAMES, jax.random.normal(jax.random.key(0), (4, 5)), strict=True))
    order = jnp.array([3, 0, 4, 1, 2])
    for loss in (partial(robust_dpo_loss, beta=0.1, flip_rate=0.2), partial(ipo_loss, tau=0.1)):
        permuted = loss(**{name: value[order] for name, value in values.items()})
        np.testing.assert_array_equal(permuted, loss(**values)[order])


def test_gradients_equal_finite_differences(check_gradient):
    policy_chosen, policy_rejected, *reference = np.random.default_rng(0).normal(size=(4, 3))
    loss = partial(dpo_loss, reference_chosen=reference[0], reference_rejected=reference[1], beta=0.5, label_smoothing=0.1)
    check_gradient(lambda c, r: loss(policy_chosen=c, policy_rejected=r), policy_chosen, policy_rejected)
    frozen = {"reference_chosen": reference[0], "reference_rejected": reference[1]}
    for loss in (partial(robust_dpo_loss, beta=0.5, flip_rate=0.2), partial(ipo_loss, tau=0.5)):
        check_gradient(lambda c, r, f=loss: f(policy_chosen=c, policy_rejected=r, **frozen), policy_chosen, policy_rejected)
    check_gradient(
        lambda c, r: simpo_loss(policy_chosen=c, policy_rejected=r, beta=2.0, margin=0.3), policy_chosen, policy_rejected
    )
    unpaired = {"reference": reference[0], "desirable": jnp.array([True, False, True]), "reference_point": jnp.float32(0.3)}
    check_gradient(lambda p: kto_loss(policy=p, **unpaired, beta=0.5, undesirable_weight=1.3), policy_chosen)


ARMS = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), axis=-1).reshape(9, 2)  # all pairs, both orders
REWARDS, REFERENCE = np.array([1.0, 0.0, -1.0]), np.log([0.2, 0.5, 0.3])


def bandit_optimum(loss, *, rate):
    """Probabilities of three arms after descent on all pairs, each weighted by its Bradley-Terry probability."""
    winner, loser = ARMS.T
    weights = jax.nn.sigmoid(REWARDS[winner] - REWARDS[loser]) / 9

    def expected(logits):
        policy, reference = jax.nn.log_softmax(logits), jnp.asarray(REFERENCE)
        chosen_and_rejected = (policy[winner], policy[loser], reference[winner], reference[loser])
        return weights @ loss(**dict(zip(NAMES, chosen_and_rejected, strict=True)))

    descent = lambda: jax.lax.fori_loop(0, 3000, lambda _, z: z - rate * jax.grad(expected)(z), jnp.zeros(3))  # noqa: E731
    return jax.nn.softmax(jax.jit(descent)())


def test_dpo_on_bradley_terry_preferences_reaches_the_optimum_of_reward_less_kl():
    np.testing.assert_allclose(bandit_optimum(partial(dpo_loss, beta=0.5), rate=5.0), [0.732165, 0.247720, 0.020115], atol=1e-4)


@pytest.mark.parametrize(("tau", "known"), [(0.1, (0.740404, 0.240801, 0.018796)), (0.5, (0.300659, 0.499877, 0.199464))])
def test_ipo_reaches_the_optimum_of_its_preference_against_uniform_opponents_less_kl(tau, known):
    np.testing.assert_allclose(bandit_optimum(partial(ipo_loss, tau=tau), rate=0.5), known, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "name"),
    [(dpo_loss, "beta"), (partial(robust_dpo_loss, flip_rate=0.1), "beta"), (ipo_loss, "tau")],
    ids=["dpo", "robust_dpo", "ipo"],
)
@pytest.mark.parametrize("strength", [0.0, -0.1, float("nan")])
def test_a_strength_that_is_not_positive_is_refused(loss, name, strength):
    with pytest.raises(ValueError, match=f"{name}={strength} must be greater than 0"):
        on_pair(loss, 0.0, 0.0, 0.0, 0.0, **{name: strength})


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="label_smoothing=1.5"):
        dpo(0.0, 0.0, 0.0, 0.0, beta=0.1, label_smoothing=1.5)
    with pytest.raises(ValueError, match="flip_rate=0.5"):
        robust_dpo(0.0, 0.0, 0.0, 0.0, beta=0.1, flip_rate=0.5)
    with pytest.raises(ValueError, match="margin=-1"):
        simpo_loss(policy_chosen=jnp.zeros(1), policy_rejected=jnp.zeros(1), beta=1.0, margin=-1.0)
    with pytest.raises(ValueError, match="undesirable_weight=0"):
        kto(0.0, desirable=True, undesirable_weight=0.0)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError):
        dpo_loss(
            policy_chosen=jnp.zeros(2),
            policy_rejected=jnp.zeros(2),
            reference_chosen=jnp.zeros(1),
            reference_rejected=jnp.zeros(2),
            beta=0.1,
        )
