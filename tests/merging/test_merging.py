"""Averages of parameters, given, streamed and online."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmx.merging import EMA, RunningMean, Uniform, averaging, exponential_mean, find_average, mean


def tree(seed, dtype="float32"):
    random = np.random.default_rng(seed)
    return {"a": jnp.asarray(random.normal(size=(3, 2)), dtype), "b": {"c": jnp.asarray(random.normal(size=4), dtype)}}


def close(found, expected, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 1e-6})), found, expected)


def test_the_mean_of_identical_trees_is_that_tree_to_the_last_bit():
    for dtype in ("float32", "bfloat16"):
        jax.tree.map(np.testing.assert_array_equal, mean([tree(0, dtype)] * 7, weights=[0.3] * 7), tree(0, dtype))
        jax.tree.map(np.testing.assert_array_equal, exponential_mean([tree(0, dtype)] * 7, 0.9), tree(0, dtype))


def test_the_running_mean_is_the_weighted_mean_of_the_batch():
    trees, weights = [tree(i) for i in range(6)], [1, 2, 3, 4, 5, 0.5]
    expected = jax.tree.map(lambda *leaves: np.average(np.stack(leaves).astype(np.float64), axis=0, weights=weights), *trees)
    close(mean(iter(trees), weights), expected, rtol=1e-5, atol=1e-6)


def test_sums_are_kept_in_float32_where_bfloat16_would_lose_them():
    big, small = {"a": jnp.full(2, 256.0, jnp.bfloat16)}, {"a": jnp.full(2, 257.0, jnp.float32)}
    found = RunningMean()
    found.add(small)
    for _ in range(3):
        found.add(big)
    np.testing.assert_array_equal(found.value()["a"], 256.25)


def test_trees_are_read_one_at_a_time():
    alive, most = [0], [0]

    def trees():
        for i in range(5):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield tree(i)
            alive[0] -= 1

    mean(trees())
    assert most[0] == 1


def test_an_exponential_average_weighs_the_newest_by_one_minus_decay():
    trees = [tree(i) for i in range(3)]
    expected = jax.tree.map(lambda x, y, z: 0.81 * x + 0.09 * y + 0.1 * z, *trees)
    close(exponential_mean(trees, 0.9), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "the mean of no parameters"),
        (lambda: exponential_mean([], 0.9), "the average of no parameters"),
        (lambda: mean([tree(0)], [-1.0]), "weight=-1.0 must be a positive number"),
        (lambda: mean([tree(0)] * 3, [1, 2]), "more models than the 2 weights"),
        (lambda: mean([tree(0)], [1, 2]), "2 weights for 1 models"),
        (lambda: mean([tree(0), {"a": tree(0)["a"]}]), r"differ: b/c is \(4,\) in the first and missing in another"),
        (lambda: exponential_mean([tree(0)], 1.0), r"decay=1.0 must lie in \[0, 1\)"),
        (lambda: Uniform(last=0), "average.last=0"),
        (lambda: averaging(optax.sgd(0.1), Uniform(last=9), 8), "average.last=9 is more than the run's 8 steps"),
        (lambda: averaging(optax.sgd(0.1), EMA(decay=0.9, start=8), 8), r"average.start=8 must lie in 0\.\.7"),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def along(average, steps):
    """Parameters after each step of a short run, and the state at its end."""
    optimizer, params = averaging(optax.adam(0.1), average, steps), tree(0)
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for i in range(steps):
        updates, state = update(tree(i + 1), state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def test_the_online_mean_is_that_of_the_last_steps_and_changes_no_update():
    found, state = along(Uniform(last=7, every=3), 10)
    average = find_average((state, ()))
    assert int(average.taken) == 3
    close(average.mean, mean([found[3], found[6], found[9]]), rtol=1e-6)
    params, inner, plain = tree(0), optax.adam(0.1).init(tree(0)), optax.adam(0.1)
    for i in range(10):
        updates, inner = plain.update(tree(i + 1), inner, params)
        params = optax.apply_updates(params, updates)
    close(found[-1], params, rtol=1e-6, atol=1e-7)
    assert find_average(inner) is None


def test_the_online_exponential_mean_is_that_of_the_trees():
    found, state = along(EMA(decay=0.8, start=4), 9)
    close(state.mean, exponential_mean(found[4:], 0.8), rtol=1e-5, atol=1e-6)
    assert int(state.taken) == 5
