"""Merges of task vectors in memory: identities, goldens, and NumPy written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.merging import (
    Arithmetic,
    Dare,
    Ema,
    Liti,
    Mean,
    Slerp,
    Ties,
    Weights,
    anchor_step,
    dare,
    exponential_mean,
    liti,
    mean,
    merge,
    slerp,
    task_arithmetic,
    ties,
    warm,
    warp,
)
from tests.merging import reference
from tests.merging.reference import flat, groups, plus, tree


@functools.cache
def family():
    base = tree(0)
    return base, plus(base, 0.05, 1, 2, 3)


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def close(found, expected, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), found, expected)


def vectors(models, base):
    return [{g: v - b for (g, v), b in zip(groups(m).items(), groups(base).values(), strict=True)} for m in models]


def test_slerp_of_the_spec_has_its_golden_value():
    base, first, second = ({"w": jnp.asarray(v, jnp.float32)} for v in ([0, 0], [1, 0], [0.5, 0.5]))
    np.testing.assert_allclose(slerp(base, [first, second], 0.5)["w"], [0.811794, 0.270598], atol=1e-6)


def test_slerp_has_an_angle_of_its_own_in_each_layer_and_table():
    base, models = family()
    for chosen in (models[:2], models):
        found, deltas = groups(slerp(base, chosen)), vectors(chosen, base)
        for group, start in groups(base).items():
            expected = start + reference.slerps([delta[group] for delta in deltas])
            np.testing.assert_allclose(found[group], expected, atol=2e-6, err_msg=group)


def test_slerp_can_take_the_angle_of_a_tensor_or_of_the_whole_tree():
    base, models = family()
    first, second = (flat(model) - flat(base) for model in models[:2])
    found = flat(slerp(base, models[:2], 0.3, by="tree")) - flat(base)
    np.testing.assert_allclose(found, reference.slerp(first, second, 0.3), atol=2e-6)
    gains = [np.asarray(t["blocks"]["1"]["ffn"]["experts"]["gate"], np.float64)[2, 1].ravel() for t in (base, *models[:2])]
    by_tensor = np.asarray(slerp(base, models[:2], by="tensor")["blocks"]["1"]["ffn"]["experts"]["gate"])[2, 1].ravel()
    np.testing.assert_allclose(by_tensor - gains[0], reference.slerp(gains[1] - gains[0], gains[2] - gains[0], 0.5), atol=2e-6)


def test_slerp_ends_at_the_models_and_is_symmetric():
    base, (first, second, _) = family()
    same(slerp(base, [first, second], 0.0), first)
    same(slerp(base, [first, second], 1.0), second)
    close(slerp(base, [first, second], 0.3), slerp(base, [second, first], 0.7))
    same(slerp(base, [first]), first)


def test_slerp_of_parallel_or_absent_task_vectors_is_a_straight_line():
    base = jax.tree.map(jnp.zeros_like, tree(0))
    one = tree(1, scale=0.05)
    twice = jax.tree.map(lambda x: 2 * x, one)
    close(slerp(base, [one, twice], 0.25), jax.tree.map(lambda x: 1.25 * x, one))
    close(slerp(base, [one, base], 0.25), jax.tree.map(lambda x: 0.75 * x, one))
    same(slerp(base, [base, base]), base)


def test_slerp_keeps_equal_norms_and_has_the_closed_form_in_the_middle():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 40))
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    base, *models = ({"w": jnp.asarray(v, jnp.float32)} for v in (np.zeros(40), first, second))
    for t in (0.1, 0.5, 0.8):
        np.testing.assert_allclose(np.linalg.norm(slerp(base, models, t)["w"]), np.linalg.norm(first), rtol=1e-5)
    angle = np.arccos(first @ second / np.linalg.norm(first) ** 2)
    np.testing.assert_allclose(slerp(base, models)["w"], (first + second) / (2 * np.cos(angle / 2)), rtol=1e-5, atol=1e-6)


def test_between_orthogonal_vectors_the_arc_is_longer_than_the_line_by_the_root_of_two():
    base, *models = ({"w": jnp.asarray(v, jnp.float32)} for v in ([0, 0], [3, 0], [0, 3]))
    arc, line = slerp(base, models)["w"], mean(models)["w"]
    np.testing.assert_allclose(np.linalg.norm(arc), np.sqrt(2) * np.linalg.norm(line), rtol=1e-6)
    assert np.linalg.norm(arc) == pytest.approx(3, rel=1e-6)


def test_the_norm_of_a_line_between_task_vectors_is_that_of_lemma_2():
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 30))
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    cosine = first @ second / np.linalg.norm(first) ** 2
    base, *models = ({"w": jnp.asarray(v, jnp.float32)} for v in (np.zeros(30), first, second))
    for t in (0.2, 0.5, 0.9):
        expected = np.linalg.norm(first) * np.sqrt(1 - 2 * (1 - cosine) * (t - t * t))
        np.testing.assert_allclose(np.linalg.norm(task_arithmetic(base, models, [1 - t, t])["w"]), expected, rtol=1e-5)


def test_opposite_task_vectors_have_no_arc_and_the_message_says_where():
    base = jax.tree.map(jnp.zeros_like, tree(0))
    one = tree(1)
    other = {**one, "blocks": {**one["blocks"], "1": jax.tree.map(jnp.negative, one["blocks"]["1"])}}
    with pytest.raises(ValueError, match=r"models 0 and 1 point in opposite directions in layer 1 \(cosine -1"):
        slerp(base, [one, other])
    close(slerp(base, [one, other], 0.25, antiparallel="lerp")["blocks"]["1"], jax.tree.map(lambda x: x / 2, one["blocks"]["1"]))


def test_the_way_layers_are_stacked_changes_nothing():
    base, models = family()

    def unrolled(params):  # 6 places of one repeat instead of 2 places of 3
        blocks = {
            str(2 * repeat + place): jax.tree.map(lambda x, r=repeat: x[r : r + 1], params["blocks"][str(place)])
            for repeat in range(3)
            for place in range(2)
        }
        return {**params, "blocks": blocks}

    for method in (Slerp(), Ties(density=0.3), Dare(density=0.5)):
        apart = merge(method, [unrolled(model) for model in models[:2]], unrolled(base))
        same(apart, unrolled(merge(method, models[:2], base)))


def test_liti_ends_exactly_and_composes():
    base, (model, *_) = family()
    same(liti(base, model, 0.0), base)
    same(liti(base, model, 1.0), model)
    close(liti(base, liti(base, model, 0.4), 0.5), liti(base, model, 0.2))


def test_liti_interpolates_the_outputs_of_a_model_that_is_linear_in_its_parameters():
    base, (model, *_) = family()
    x = np.random.default_rng(5).normal(size=6)
    ends = [np.asarray(params["embedding"]["table"]) @ x for params in (base, model)]
    np.testing.assert_allclose(
        liti(base, model, 0.3)["embedding"]["table"] @ x, 0.7 * ends[0] + 0.3 * ends[1], rtol=1e-4, atol=1e-5
    )


def test_an_iteration_of_warp_is_slerp_and_then_liti():
    base, models = family()
    close(warp(base, models, 0.3), liti(base, slerp(base, models), 0.3))
    same(warp(base, models[:1], 1.0), models[0])  # M = 1, eta = 1: plain RL goes on
    same(warp(base, models, 0.0), base)


def test_the_moving_anchor_has_its_closed_form_and_both_ends():
    start, policies = tree(0), [tree(seed) for seed in range(1, 11)]
    anchor, step = start, jax.jit(anchor_step)
    for policy in policies:
        anchor = step(anchor, policy, 0.1)
    expected = 0.9**10 * flat(start) + sum(0.1 * 0.9 ** (9 - t) * flat(policy) for t, policy in enumerate(policies))
    np.testing.assert_allclose(flat(anchor), expected, atol=2e-6)
    same(anchor_step(start, policies[0], 0.0), start)
    same(anchor_step(start, policies[0], 1.0), policies[0])


def test_an_average_in_bfloat16_is_refused():
    narrow = tree(0, "bfloat16")
    with pytest.raises(ValueError, match=r"blocks/0/attention/q/kernel of the moving average is bfloat16.*keep it in float32"):
        anchor_step(narrow, narrow, 0.01)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    same(anchor_step(wide, narrow, 0.01), wide)
    with pytest.raises(ValueError, match=r"mu=1.5 must lie in \[0, 1\]"):
        anchor_step(wide, wide, 1.5)


def test_task_arithmetic_is_the_sum_of_scaled_task_vectors():
    base, models = family()
    expected = flat(base) + sum(s * (flat(m) - flat(base)) for s, m in zip((0.5, -0.3, 1.2), models, strict=True))
    np.testing.assert_allclose(flat(task_arithmetic(base, models, [0.5, -0.3, 1.2])), expected, atol=1e-6)
    close(task_arithmetic(base, models), mean(models))
    close(task_arithmetic(base, models), task_arithmetic(base, models[::-1]))
    same(task_arithmetic(base, models[:1]), models[0])


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_ties_is_algorithm_1(density, scale):
    base, models = family()
    deltas = [np.float64(np.float32(flat(m)) - np.float32(flat(base))) for m in models]
    expected = flat(base) + reference.ties(deltas, density, scale)
    np.testing.assert_allclose(flat(ties(base, models, density=density, scale=scale)), expected, atol=1e-6)


def test_ties_can_trim_each_layer():
    base, models = family()
    found, deltas = groups(ties(base, models, density=0.3, by="layer")), vectors(models, base)
    for group, start in groups(base).items():
        np.testing.assert_allclose(found[group], start + reference.ties([d[group] for d in deltas], 0.3, 1.0), atol=1e-6)


def test_ties_of_one_model_with_everything_kept_is_that_model():
    base, models = family()
    close(ties(base, models[:1], density=1.0), models[0], atol=1e-7)


def test_numbers_that_ties_cannot_agree_on_stay_at_the_base():
    base, *models = ({"w": jnp.asarray(v, jnp.float32)} for v in ([1, 1, 1], [2, 0, 1], [0, -1, 4]))
    np.testing.assert_array_equal(ties(base, models, density=1.0)["w"], [1, -0.5, 4])  # -1 and -2 agree: their mean


def test_dare_drops_at_random_and_has_the_task_vector_as_its_expectation():
    base = {"w": jnp.zeros((50, 40))}
    model = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)), jnp.float32)}
    draws = np.stack([dare(base, [model], density=0.3, seed=seed)["w"] for seed in range(100)])
    kept = draws != 0
    np.testing.assert_allclose(draws, np.where(kept, np.asarray(model["w"]) / np.float32(0.3), 0), rtol=1e-6)
    assert abs(kept.mean() - 0.3) < 4 * np.sqrt(0.21 / kept.size)
    error = np.abs(draws.mean(0) - np.asarray(model["w"])) / np.abs(np.asarray(model["w"]))
    assert np.sqrt(np.mean(error**2)) < 1.2 * np.sqrt(0.7 / 0.3 / 100)
    plain = dare(base, [model], density=0.3, seed=7, rescale=False)["w"]
    np.testing.assert_allclose(plain, 0.3 * draws[7], rtol=1e-5)


def test_dare_masks_differ_between_models_layers_and_rows_but_not_between_calls():
    base, models = family()
    dropped = dare(base, models[:1], density=0.5, seed=3)
    same(dropped, dare(base, models[:1], density=0.5, seed=3))
    kept = np.asarray(dropped["blocks"]["0"]["attention"]["q"]["kernel"] != base["blocks"]["0"]["attention"]["q"]["kernel"])
    rows = kept.reshape(-1, 6)
    assert len(np.unique(rows, axis=0)) > 10
    twice = dare(base, [models[0], models[0]], density=0.5, seed=3)
    both = flat(twice) - flat(base), flat(dropped) - flat(base)
    assert np.mean((both[0] != 0) & (both[1] == 0)) > 0.1  # the second model keeps others
    close(dare(base, models, density=1.0, seed=0), mean(models))


def test_dare_followed_by_ties_elects_among_what_is_left():
    base, *models = ({"w": jnp.asarray(v, jnp.float32)} for v in ([0, 0, 0], [2, -1, 1], [-1, -3, 1]))
    found = merge(Dare(density=1.0, combine_by="elect"), models, base)["w"]
    np.testing.assert_array_equal(found, [2, -2, 1])


def test_warm_is_the_mean_whatever_the_order_and_of_one_model_that_model():
    _, models = family()
    close(warm(iter(models)), warm(models[::-1]))
    same(warm(models[:1]), models[0])
    same(merge(Mean(), models), warm(models))
    same(merge(Mean(), [models[0]] * 3), models[0])
    same(merge(Ema(decay=0.8), models), exponential_mean(models, 0.8))


def test_layers_and_tables_can_have_weights_of_their_own():
    base, models = family()
    weights = Weights(default=(0.5, 0.5), groups={"1": (1.0, 0.0), "embedding": (0.0, 1.0)})
    expected = groups(mean(models[:2])) | {"1": groups(models[0])["1"], "embedding": groups(models[1])["embedding"]}
    for method in (Mean(weights=weights), Slerp(weights=weights), Arithmetic(weights=weights)):
        found = groups(merge(method, models[:2], base if method.needs_base else None))
        for group in ("1", "embedding", *(["0", "final_norm"] if not isinstance(method, Slerp) else [])):
            np.testing.assert_allclose(found[group], expected[group], rtol=1e-5, atol=1e-6, err_msg=f"{method} {group}")
    found = groups(merge(Liti(eta=0.0, groups={"5": 1.0}), models[:1], base))
    np.testing.assert_array_equal(found["5"], groups(models[0])["5"])
    np.testing.assert_array_equal(found["4"], groups(base)["4"])


def test_arithmetic_is_float32_and_the_result_has_the_first_models_dtypes():
    base, models = tree(0, "bfloat16"), [tree(seed, "bfloat16") for seed in (1, 2)]
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (base, models))
    for method in (Slerp(), Ties(density=0.4), Arithmetic(), Dare(density=0.5)):
        found = merge(method, models, base)
        same(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), merge(method, wide[1], wide[0])))


BASE, ONE, TWO = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, {"w": jnp.arange(2.0)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge(Mean(), []), "there is no model to merge"),
        (lambda: merge(Slerp(), [ONE]), "Slerp merges task vectors: give the base"),
        (lambda: merge(Mean(), [ONE], BASE), "Mean has no use for the base"),
        (lambda: merge(Mean(), [ONE, {"v": ONE["w"]}]), r"differ: v is missing in the first and \(2,\) in another"),
        (lambda: slerp({"w": jnp.zeros(3)}, [ONE, TWO]), r"differ: w is \(2,\) in the first and \(3,\) in another"),
        (lambda: merge(Mean(weights=Weights(default=(0.5, 0.6))), [ONE, TWO]), "sum to 1.1, but must sum to 1; ask for normalize"),
        (lambda: merge(Mean(weights=Weights(default=(1.5, -0.5))), [ONE, TWO]), "must not be negative"),
        (lambda: merge(Mean(weights=Weights(default=(1.0,))), [ONE, TWO]), "there are 1 weights for 2 models"),
        (lambda: merge(Mean(weights=Weights(groups={"9": (1, 0)})), [ONE, TWO]), "weights for '9', but the model has only w"),
        (lambda: Weights(default=(float("nan"),)), "must be finite"),
        (lambda: slerp(BASE, [ONE, TWO], 1.5), r"must lie in \[0, 1\]"),
        (
            lambda: merge(Slerp(weights=Weights(default=(0.2, 0.3, 0.5))), [ONE, TWO, ONE], BASE),
            "weights for two models, not for 3",
        ),
        (lambda: merge(Slerp(weights=Weights(default=(0.2, 0.3))), [ONE, TWO], BASE), "sum to 0.5, but must sum to 1"),
        (lambda: Slerp(by="head"), "by='head' is not 'tensor', 'layer' or 'tree'"),
        (lambda: merge(Liti(eta=0.5), [ONE, TWO], BASE), "takes one model, not 2; merge those first"),
        (lambda: ties(BASE, [ONE, TWO], density=0.0), r"density=0.0 must lie in \(0, 1\]"),
        (lambda: dare(BASE, [ONE, TWO], density=1.5, seed=0), r"density=1.5 must lie in \(0, 1\]"),
        (lambda: merge(Ties(weights=Weights(default=(-1.0, 2.0))), [ONE, TWO], BASE), "elect signs must not be negative"),
        (lambda: merge(Ema(decay=1.0), [ONE, TWO]), r"decay=1.0 must lie in \[0, 1\)"),
        (lambda: merge(Mean(), [{"blocks": {"0": {"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}}}]), "number of stacked layers"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
