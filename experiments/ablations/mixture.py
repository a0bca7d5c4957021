"""The mixture of experts that M12 and M13 share, and what is measured of its routing."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs.models import tiny
from experiments.ablations import bed
from lmx.core.types import Array, Params
from lmx.data.batches import LMBatch
from lmx.model.activation import gated, silu
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model, build_model
from lmx.model.execution import Execution
from lmx.train import population

LENGTH, EXPERTS, WIDTH = 64, 8, 44


def config() -> DecoderConfig:
    """A Qwen2-MoE of width 32 and two layers: 2 of 8 experts of width 44 a token, and a shared one of 88."""
    return tiny.qwen2_moe(
        bed.BYTES.vocab_size,
        model_dim=32,
        num_layers=2,
        q_heads=2,
        kv_heads=1,
        ffn_dim=WIDTH,
        num_experts=EXPERTS,
        experts_per_token=2,
        max_length=LENGTH,
    )


@functools.cache
def model() -> Model:
    """The mixture, with experts that can be mapped over arms and seeds."""
    return build_model(config(), Execution(experts=dense_experts))


def dense_experts(
    x: Array, gate: Array, up: Array, down: Array, expert_ids: Array, weights: Array, *, activation: Callable[[Array], Array]
) -> Array:
    """What `lmx.model.experts.dropless_experts` computes, by running every expert on every token.

    `jax.lax.ragged_dot`, which that one rests on, can't be mapped twice in jax 0.10 (over arms and over seeds).
    """
    of_expert = jnp.einsum("BTk,BTkE->BTE", weights, jax.nn.one_hot(expert_ids, gate.shape[0], dtype=x.dtype))
    hidden = gated(jnp.einsum("BTD,EDF->BTEF", x, gate), jnp.einsum("BTD,EDF->BTEF", x, up), activation)
    return jnp.einsum("BTEF,EFD,BTE->BTD", hidden, down, of_expert)


def loads(model: Model, params: Params, batches: LMBatch) -> np.ndarray:
    """[A, S, L, E] float64: the share of a layer's slots that go to each expert, over batches [N, B, T]."""

    def selected(params: Params, batch: LMBatch) -> Array:
        router = model.apply(params, batch).router
        assert router is not None
        return router.selected

    counts = population.evaluate(selected, params, batches).astype(np.float64).sum(axis=2)
    return counts / counts.sum(axis=-1, keepdims=True)


def variation(shares: np.ndarray) -> np.ndarray:
    """Coefficient of variation over the last axis: standard deviation over mean."""
    return shares.std(axis=-1) / shares.mean(axis=-1)


def entropy(shares: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    return -np.sum(shares * np.log(np.maximum(shares, 1e-12)), axis=-1)


def output_cosine(params: Params, *, tokens: int = 256) -> np.ndarray:
    """[A, S] mean cosine between the outputs of two different experts of a layer.

    Args:
      params: of `model()`, leaves [A, S, ...].
      tokens: inputs drawn from the normal distribution, as large as the norm before the experts makes them.
    """
    block = params["blocks"]["0"]
    experts, gains = block["ffn"]["experts"], block["ffn_norm"]["gain"]  # [A, S, R, E, ...], [A, S, R, D]
    x = jax.random.normal(jax.random.key(0), (tokens, gains.shape[-1]))

    def layer(experts: Params, gain: Array) -> Array:
        inputs = x * gain
        gate, up = (jnp.einsum("MD,EDF->EMF", inputs, experts[name]) for name in ("gate", "up"))
        hidden = gated(gate, up, silu)
        outputs = jnp.einsum("EMF,EFD->EMD", hidden, experts["down"])
        directions = outputs / jnp.linalg.norm(outputs, axis=-1, keepdims=True)
        cosines = jnp.einsum("EMD,GMD->EG", directions, directions) / tokens
        return (cosines.sum() - jnp.trace(cosines)) / (EXPERTS * (EXPERTS - 1))

    by_layer = jax.jit(jax.vmap(jax.vmap(jax.vmap(layer))))(experts, gains)
    return np.asarray(by_layer, np.float64).mean(axis=-1)
