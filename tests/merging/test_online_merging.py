"""The Online Merging Optimizer against naive NumPy loops, AdamW, and its own identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.merging import OnlineMerging, with_task_vector
from lmx.merging.optimizer import OnlineMergingState, adam

RATE, STEPS = 0.05, 7


def tree(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {
        "blocks": {"0": {"kernel": jnp.asarray(scale * random.normal(size=(2, 4, 5)), jnp.float32)}},
        "table": jnp.asarray(scale * random.normal(size=(7, 3)), jnp.float32),
    }


SFT, BASE = tree(0), tree(1)
TAU = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), SFT, BASE)
GRADS = [tree(10 + step) for step in range(STEPS)]


def run(config, inner=None):
    """Parameters after each step."""
    optimizer = config.wrap(inner or optax.adam(RATE), jax.random.key(5), sft=SFT, base=BASE, learning_rate=RATE)
    params, state, found = SFT, optimizer.init(SFT), []
    step = jax.jit(optimizer.update)
    for grads in GRADS:
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def close(found, expected, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=atol), found, expected)


class NaiveAdam:
    """Adam on one tensor, in float64, bias-corrected as in the paper of Adam, or with eps beside the uncorrected root."""

    def __init__(self, eps, beside_uncorrected):
        self.m = self.v = 0.0
        self.t, self.eps, self.beside = 0, eps, beside_uncorrected

    def displacement(self, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        first, second = 1 - 0.9**self.t, 1 - 0.999**self.t
        if self.beside:
            return -RATE * np.sqrt(second) / first * self.m / (np.sqrt(self.v) + self.eps)
        return -RATE * (self.m / first) / (np.sqrt(self.v / second) + self.eps)


def largest(x, density):
    kept = np.zeros_like(x)
    top = np.argsort(-np.abs(x).ravel(), kind="stable")[: max(1, int(density * x.size))]
    kept.ravel()[top] = x.ravel()[top]
    return kept


def ties_of_the_paper(d, tau, alpha, density):
    first, second = (1 - alpha) * largest(d, density), alpha * largest(tau, density)
    moved = np.zeros_like(d)
    for index in np.ndindex(d.shape):
        a, b = first[index], second[index]
        if a * b >= 0:
            moved[index] = a + b
        elif abs(a) != abs(b):
            moved[index] = a if abs(a) > abs(b) else b
    return moved


def ties_of_the_code(d, tau, alpha, density):
    kept = [largest(tau, density), largest(d, density)]
    sign = np.where(kept[0] + kept[1] >= 0, 1, -1)
    return sum(weight * np.where(np.sign(x) == sign, x, 0) for weight, x in zip((alpha, 1 - alpha), kept, strict=True))


def tensors(params):
    """The tensors as PyTorch has them: each layer apart."""
    return [*params["blocks"]["0"]["kernel"], params["table"]]


def naive(merge, make_adam, every=1, decay=0.0):
    """The algorithm, tensor by tensor."""
    final = []
    for tensor, (start, tau) in enumerate(zip(tensors(SFT), tensors(TAU), strict=True)):
        theta, own, carried = np.asarray(start, np.float64), make_adam(), 0.0
        for step, grads in enumerate(GRADS, start=1):
            d = own.displacement(np.asarray(tensors(grads)[tensor], np.float64))
            if step % every:
                theta, carried = theta + d, carried + d
            else:
                theta, carried = theta - carried + merge(d + carried, np.asarray(tau)), 0.0
            theta = theta * (1 - RATE * decay)
        final.append(theta)
    return final


@pytest.mark.parametrize(("alpha", "every"), [(0.0, 1), (0.02, 1), (0.02, 3)])
def test_online_ties_of_the_paper_is_the_naive_loop(alpha, every):
    config = OnlineMerging(method="ties", alpha=alpha, density=0.4, every=every, weight_decay=0.1)
    found, _ = run(config, optax.adam(RATE, eps=0.1))  # with a small eps all magnitudes of the first step are the learning rate
    expected = naive(lambda d, tau: ties_of_the_paper(d, tau, alpha, 0.4), lambda: NaiveAdam(0.1, False), every, decay=0.1)
    close(tensors(found[-1]), expected)


@pytest.mark.parametrize("every", [1, 3])
def test_online_ties_of_the_code_is_the_naive_loop(every):
    config = OnlineMerging(method="ties", alpha=0.02, density=0.4, mode="code", every=every, weight_decay=0.1)
    found, _ = run(config, adam(RATE, eps=0.01))
    expected = naive(lambda d, tau: ties_of_the_code(d, tau, 0.02, 0.4), lambda: NaiveAdam(0.01, True), every, decay=0.1)
    close(tensors(found[-1]), expected)


@pytest.mark.parametrize("config", [OnlineMerging(alpha=0.0, density=1.0), OnlineMerging(method="ties", alpha=0.0, density=1.0)])
def test_without_dropping_and_merging_it_is_adamw_to_the_last_bit(config):
    inner = optax.adamw(RATE, weight_decay=0.1)
    found, _ = run(config, inner)
    params, state, update = SFT, inner.init(SFT), jax.jit(inner.update)
    for grads, merged in zip(GRADS, found, strict=True):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_the_published_adam_is_adam_with_its_own_eps():
    inner = adam(RATE)
    state, params = inner.init(SFT), SFT
    expected = naive(lambda d, tau: d, lambda: NaiveAdam(1e-6, True))
    update = jax.jit(inner.update)
    for grads in GRADS:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    close(tensors(params), expected)


def large(seed):
    return {"w": jnp.asarray(np.random.default_rng(seed).uniform(1, 2, size=(60, 50)), jnp.float32)}


def merged(config, count):
    """One merging step, and which numbers of displacement and task vector it kept (their digits tell)."""
    d, tau = large(0), jax.tree.map(lambda x: 1000 * x, large(1))
    moved = np.asarray(config.merge(d, tau, jax.random.key(0), jnp.int32(count))["w"])
    return moved, np.asarray(d["w"]), np.asarray(tau["w"])


def test_online_dare_keeps_a_share_of_both_unscaled_and_draws_anew_each_step():
    config = OnlineMerging(alpha=0.25, density=0.3)
    masks = []
    for count in (1, 2):
        moved, d, tau = merged(config, count)
        of_tau = moved > 100
        of_d = moved - np.where(of_tau, 0.25 * tau, 0) > 0.5
        np.testing.assert_allclose(moved, 0.75 * np.where(of_d, d, 0) + 0.25 * np.where(of_tau, tau, 0), rtol=1e-6)
        masks += [of_d, of_tau]
    for mask in masks:
        assert abs(mask.mean() - 0.3) < 4 * np.sqrt(0.21 / mask.size)
    for i in range(4):
        for j in range(i):
            assert abs(np.mean(masks[i] & masks[j]) - 0.09) < 4 * np.sqrt(0.09 * 0.91 / d.size)


def test_online_dare_of_the_code_rescales_clips_and_masks_the_task_vector_once():
    config = OnlineMerging(alpha=0.25, density=0.5, mode="code")
    kept = []
    for count in (1, 2):
        d, tau = large(0), jax.tree.map(lambda x: 0.6 * x - 0.9, large(1))  # in [-0.3, 0.3]: doubled, none is clipped
        moved = np.asarray(config.merge(d, tau, jax.random.key(0), jnp.int32(count))["w"])
        of_d = moved > 0.6
        rest = moved - np.where(of_d, 0.75 * 2 * np.asarray(d["w"]), 0)
        of_tau = np.abs(rest) > 1e-6
        np.testing.assert_allclose(rest[of_tau], 0.5 * np.asarray(tau["w"])[of_tau], atol=1e-6)
        kept.append((of_d, of_tau))
    assert (kept[0][0] != kept[1][0]).any() and (kept[0][1] != kept[1][1]).mean() < 0.001
    moved, d, _ = merged(config, 1)
    assert set(np.unique(np.round(moved - np.where(moved > 1, 1.5 * d, 0), 5))) == {0.0, 0.25}  # clipped to 1, times alpha


def test_matching_norms_keeps_the_sum_of_magnitudes():
    d, zero = tree(0, 0.001), jax.tree.map(jnp.zeros_like, SFT)
    for method in ("dare", "ties"):
        config = OnlineMerging(method=method, alpha=0.0, density=0.5, mode="code", match_norm=True)
        moved = jax.jit(config.merge)(d, zero, jax.random.key(0), jnp.int32(1))
        for new, old in zip(tensors(moved), tensors(d), strict=True):
            assert np.abs(new).sum() == pytest.approx(np.abs(old).sum(), rel=1e-3)
            assert (np.asarray(new) == 0).any()


def test_a_share_of_less_than_one_number_keeps_the_largest_in_the_paper_and_all_in_the_code():
    tau = {"w": jnp.zeros(5)}
    d = {"w": jnp.asarray([1.0, -3, 2, 0.5, 0])}
    for mode, expected in (("paper", [0, -3, 0, 0, 0]), ("code", [1, -3, 2, 0.5, 0])):
        config = OnlineMerging(method="ties", alpha=0.0, density=0.01, mode=mode)
        np.testing.assert_array_equal(config.merge(d, tau, jax.random.key(0), jnp.int32(1))["w"], expected)


def test_of_equal_magnitudes_no_more_than_the_share_is_kept():
    d = {"blocks": {"0": {"w": jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 4, 5)), jnp.float32)}}}
    config = OnlineMerging(method="ties", alpha=0.0, density=0.4)
    moved = jax.jit(config.merge)(d, jax.tree.map(jnp.zeros_like, d), jax.random.key(0), jnp.int32(1))["blocks"]["0"]["w"]
    np.testing.assert_array_equal(np.count_nonzero(moved, axis=(1, 2)), 8)


def test_equal_terms_of_opposite_sign_cancel_in_the_paper():
    config = OnlineMerging(method="ties", alpha=0.5, density=1.0)
    moved = config.merge({"w": jnp.asarray([2.0, 1, 0])}, {"w": jnp.asarray([-2.0, -3, 4])}, jax.random.key(0), jnp.int32(1))
    np.testing.assert_array_equal(moved["w"], [0, -1.5, 2])


def test_between_merges_the_steps_are_plain():
    plain, _ = run(OnlineMerging(alpha=0.0, density=1.0))
    found, state = run(OnlineMerging(alpha=0.1, density=0.5, every=3))
    for step in (0, 1):
        close(found[step], plain[step])
    assert any((np.asarray(a) != b).any() for a, b in zip(tensors(found[2]), tensors(plain[2]), strict=True))
    close(jax.tree.map(jnp.add, found[5], state.carried), found[6])  # step 7 after the merge of step 6


def test_the_task_vector_can_come_after_init_and_updates_before_it_are_not_numbers():
    config = OnlineMerging(method="ties", alpha=0.02, density=0.4)
    given = config.wrap(optax.adam(RATE), jax.random.key(5), sft=SFT, base=BASE)
    later = config.wrap(optax.adam(RATE), jax.random.key(5))
    state = jax.jit(later.init)(SFT)
    updates, _ = later.update(GRADS[0], state, SFT)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))
    loaded = with_task_vector((state, {}), SFT, BASE)[0]
    assert isinstance(loaded, OnlineMergingState)
    jax.tree.map(np.testing.assert_array_equal, loaded, given.init(SFT))
    jax.tree.map(np.testing.assert_array_equal, later.update(GRADS[0], loaded)[0], given.update(GRADS[0], given.init(SFT))[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OnlineMerging(density=0.0), r"density=0.0 must lie in \(0, 1\]"),
        (lambda: OnlineMerging(alpha=2.0), r"alpha=2.0 must lie in \[0, 1\]"),
        (lambda: OnlineMerging(every=0), "every=0 be at least 1"),
        (lambda: OnlineMerging(method="slerp"), "method='slerp' must be 'dare' or 'ties'"),
        (lambda: OnlineMerging(match_norm=True), "match_norm belongs to mode='code'"),
        (lambda: OnlineMerging().wrap(optax.sgd(1.0), jax.random.key(0), sft=SFT), "needs both sft and base"),
        (lambda: OnlineMerging().wrap(optax.sgd(1.0), jax.random.key(0), sft=SFT, base={}), "differ: blocks/0/kernel is"),
        (lambda: with_task_vector((), SFT, BASE), "no online merging to give a task vector to"),
    ],
)
def test_what_cannot_be_merged_online_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
