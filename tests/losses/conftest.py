"""Numeric gradients: losses are computed in float64 and compared with central differences."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest


@pytest.fixture
def check_gradient() -> Callable:
    """`check_gradient(fn, *arrays)`: the gradient of sum(fn(*arrays)) equals central differences in float64."""

    def check(fn: Callable, *arrays: np.ndarray, step: float = 1e-6, tolerance: float = 1e-7) -> None:
        with jax.enable_x64(True):
            arrays = tuple(np.asarray(x, np.float64) for x in arrays)
            total = jax.jit(lambda *xs: fn(*xs).sum())
            grads = jax.jit(jax.grad(lambda *xs: fn(*xs).sum(), argnums=tuple(range(len(arrays)))))(*arrays)
            for which, (x, grad) in enumerate(zip(arrays, grads, strict=True)):
                numeric = np.zeros_like(x)
                for index in np.ndindex(x.shape):
                    bump = np.zeros_like(x)
                    bump[index] = step
                    up, down = (total(*(a + sign * bump if i == which else a for i, a in enumerate(arrays))) for sign in (1, -1))
                    numeric[index] = (up - down) / (2 * step)
                # Central differences in float64: truncation and rounding are both near 1e-10 at this step.
                np.testing.assert_allclose(grad, numeric, atol=tolerance)

    return check


@pytest.fixture
def float64() -> Iterator[None]:
    """The whole test computes in float64, in which the losses keep what they are given."""
    with jax.enable_x64(True):
        yield
