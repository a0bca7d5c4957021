import jax
import jax.numpy as jnp
import numpy as np

from lmx.sharding import DEFAULT_RULES, MeshConfig, build_mesh
from lmx.sharding.wrap import shard_by_axes

MESH = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
X, W = jax.random.normal(jax.random.key(0), (4, 6)), jax.random.normal(jax.random.key(1), (8, 6))


def test_a_kernel_sees_its_shard_and_values_and_gradients_are_those_of_one_device():
    """y = x + (x W^T)^2 W with the rows of W split over tensor, so each device holds a part of the sum."""
    seen = []

    def kernel(x, weights):
        seen.append((x.shape, weights["w"].shape))
        return x + jax.lax.psum(jnp.square(x @ weights["w"].T) @ weights["w"], "tensor")

    def whole(x, weights):
        return x + jnp.square(x @ weights["w"].T) @ weights["w"]

    sharded = shard_by_axes(kernel, MESH, DEFAULT_RULES, (("batch", None), {"w": ("ffn", None)}))
    value = lambda fn: jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(fn(x, w))), argnums=(0, 1)))  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), value(sharded)(X, {"w": W}), value(whole)(X, {"w": W})
    )
    assert set(seen) == {((1, 6), (4, 6))}


def test_rows_that_do_not_divide_are_computed_on_every_device():
    double = shard_by_axes(lambda x: 2 * x, MESH, DEFAULT_RULES, (("batch", None),))
    np.testing.assert_array_equal(jax.jit(double)(X[:3]), 2 * X[:3])
