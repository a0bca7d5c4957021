"""Loss by position."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.types import Outputs
from lmx.data.batches import LMBatch
from lmx.eval.positions import loss_by_position
from lmx.model.decoder import Model


def apply(params: Any, batch: Any) -> Outputs:
    """Logit of label 1 over label 0: the position, so the loss of label 1 is log(1 + exp(-position))."""
    hidden = jnp.stack([jnp.zeros_like(batch.positions), batch.positions], axis=-1).astype(jnp.float32)
    return Outputs(hidden, jnp.eye(2))


MODEL = Model(None, None, None, apply, None, None)  # type: ignore[arg-type]


def batch() -> LMBatch:
    positions = np.array([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]], np.int32)
    mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
    ones = np.ones_like(positions)
    return LMBatch(ones, ones, mask, ones, positions)  # type: ignore[arg-type]


def test_each_label_falls_into_the_bucket_of_its_position() -> None:
    found = loss_by_position(MODEL, {}, [batch(), batch()], edges=(0, 1, 3, 5))
    nats = np.log1p(np.exp(-np.arange(6.0)))
    assert found.tokens.tolist() == [6, 10, 4]
    np.testing.assert_allclose(found.mean, [nats[0], (6 * nats[1] + 4 * nats[2]) / 10, (nats[3] + nats[4]) / 2], rtol=1e-5)
    assert found.overall == pytest.approx(float(found.nats.sum() / 20))


def test_empty_buckets_are_nan_and_change_nothing() -> None:
    found = loss_by_position(MODEL, {}, [batch()], edges=(0, 6, 50))
    assert found.tokens.tolist() == [11, 0] and np.isnan(found.mean[1]) and np.isfinite(found.overall)
    assert jax.tree.leaves(found.nats)[0].dtype == np.float64


def test_useless_edges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"edges=\[3, 3\] must be at least two ascending positions"):
        loss_by_position(MODEL, {}, [batch()], edges=(3, 3))
    with pytest.raises(ValueError, match=r"none of the 1 held-out batches has a label that counts at positions 10\.\.19"):
        loss_by_position(MODEL, {}, [batch()], edges=(10, 20))
