"""The experts of the ablations' mixture, which can be mapped twice, against the library's."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations import mixture
from lmx.model.activation import silu
from lmx.model.experts import dropless_experts


def test_dense_experts_compute_what_dropless_experts_do_forward_and_backward():
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (2, 8, 16))
    kernels = [
        jax.random.normal(key, shape) / 4 for key, shape in zip(keys[1:4], [(4, 16, 12), (4, 16, 12), (4, 12, 16)], strict=True)
    ]
    ids = jax.lax.top_k(jax.random.normal(keys[4], (2, 8, 4)), 2)[1]
    weights = jax.nn.softmax(jax.random.normal(keys[5], (2, 8, 2)))

    def squares(experts, x, weights, *kernels):
        return jnp.sum(experts(x, *kernels, ids, weights, activation=silu) ** 2)

    places = tuple(range(1, 6))
    expected, found = (
        jax.value_and_grad(squares, places)(experts, x, weights, *kernels) for experts in (dropless_experts, mixture.dense_experts)
    )
    for left, right in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_loads_of_even_and_of_one_sided_routing_have_the_variation_and_entropy_of_the_formulas():
    shares = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(mixture.variation(shares), [0.0, np.sqrt(3.0)])
    np.testing.assert_allclose(mixture.entropy(shares), [np.log(4.0), 0.0], atol=1e-9)
