"""The bed that the ablations share: small models, byte-level text, and how a population is trained and judged on them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.data import python_corpus
from configs.models import tiny
from experiments.ablations import claims
from lmx.core.types import Array, Objective, Params
from lmx.data.batches import LMBatch
from lmx.data.text import PackedText
from lmx.eval.claims import Finding
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model, build_model
from lmx.objectives.lm import language_model
from lmx.optim import AdamW, Constant, Layout, Optimizer
from lmx.pipeline.experiment import Experiment
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES
from lmx.stages import Bench, Measure
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.train import population
from lmx.train.spec import TrainSpec

BYTES = ByteTokenizer()
LENGTH = 128
ADAMW = AdamW(schedule=Constant(value=1.0), weight_decay=0.1)


def experiment(claim: str, by: Callable[[Bench], Finding]) -> Experiment:
    """The experiment of one claim: a single stage."""
    return experiments({claim: by})


def experiments(functions: Mapping[str, Callable[[Bench], Finding]]) -> Experiment:
    """The experiment of claims that share their runs: claim -> its function. One stage is named "claim", several by their ids."""
    stages = {claim: Measure(claim=claims.BY_ID[claim], by=by) for claim, by in functions.items()}
    name = "-".join(stages)
    return Experiment(name=name, seed=0, stages=stages if len(stages) > 1 else {"claim": stages[name]})


def llama(
    *, model_dim: int = 64, num_layers: int = 2, max_length: int = LENGTH, vocab_size: int = BYTES.vocab_size
) -> DecoderConfig:
    """A Llama of 125 thousand parameters: heads of 16, FFN of 2.75 times the width, no RoPE scaling below `max_length`."""
    return tiny.llama3(
        vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        q_heads=model_dim // 16,
        kv_heads=model_dim // 32,
        ffn_dim=model_dim * 11 // 4,
        max_length=max_length,
        lengthening=1,
    )


def gemma2(*, window: int, max_length: int = LENGTH) -> DecoderConfig:
    """A Gemma 2 of 32 thousand parameters, width 32: a layer with a window and a global one, heads of 16."""
    return tiny.gemma2(
        BYTES.vocab_size,
        num_layers=2,
        model_dim=32,
        q_heads=2,
        kv_heads=1,
        head_dim=16,
        ffn_dim=88,
        window=window,
        max_length=max_length,
    )


def spec(model: Model, objective: Objective, batches: LMBatch, *, optimizer: Optimizer = ADAMW, steps: int = 1) -> TrainSpec:
    """A member's training step on one device. The optimizer is built around `Constant(value=1.0)`, see `population.train`.

    Args:
      model: the trained one.
      objective: what is minimised.
      batches: leaves [..., B, T]; the last two axes are a batch's.
      optimizer: its schedule is `Constant(value=1.0)`.
      steps: of the run, for optimizers that want to know.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype), batches)
    return TrainSpec(
        model=model,
        objective=objective,
        optimizer=optimizer.build(steps, Layout(model.axes, model.config.model_dim)),
        batch_spec=shapes,
        mesh=build_mesh(MeshConfig(), jax.devices()[:1]),
        rules=DEFAULT_RULES,
    )


def train(
    model: Model, params: Params, batches: LMBatch, *, optimizer: Optimizer = ADAMW, steps: int = 1, **options: Any
) -> population.Trained:
    """`population.train` on the next token; optimizer and steps as in `spec`, the other options as there."""
    objective = language_model(model.apply)
    return population.train(spec(model, objective, batches, optimizer=optimizer, steps=steps), params, batches, **options)


def whole_rows(symbols: np.ndarray, loss_mask: np.ndarray | None = None) -> LMBatch:
    """Rows [..., T + 1] of ids as batches [..., T] in which each row is one document; every label counts where no mask is given."""
    shape = symbols[..., 1:].shape
    leaves: dict[str, Any] = {
        "tokens": symbols[..., :-1],
        "labels": symbols[..., 1:],
        "loss_mask": np.ones(shape, bool) if loss_mask is None else loss_mask,
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape),
    }
    return LMBatch(**leaves)


def text(
    seeds: Sequence[int],
    steps: int,
    *,
    batch_size: int = 16,
    length: int = LENGTH,
    data: PackedText | None = None,
    tokenizer: Tokenizer = BYTES,
) -> LMBatch:
    """Training batches in each seed's order, leaves [S, N, B, T]; Python's documentation, where `data` is None."""
    data = data or python_corpus.prose()
    loaders = [data.loader(tokenizer, batch_size=batch_size, length=length, seed=seed) for seed in seeds]
    rows = [population.stacked(loader, steps) for loader in loaders]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def heldout(
    count: int = 16, *, batch_size: int = 16, length: int = LENGTH, data: PackedText | None = None, tokenizer: Tokenizer = BYTES
) -> LMBatch:
    """Held-out batches, the same for every member, leaves [N, B, T]."""
    data = data or python_corpus.prose()
    loader = data.loader(tokenizer, batch_size=batch_size, length=length, seed=0, split="heldout")
    return population.stacked(loader, count)


def token_losses(model: Model, params: Params, batches: LMBatch, *, own_batches: bool = False) -> np.ndarray:
    """[A, S, N, B, T] float32 cross-entropy in nats of every label; see `population.evaluate`."""
    return population.evaluate(functools.partial(_token_losses, model), params, batches, own_batches=own_batches)


def mean_losses(model: Model, params: Params, batches: LMBatch) -> np.ndarray:
    """[A, S] mean cross-entropy in nats a token over held-out batches [N, B, T]."""
    return population.mean_over_tokens(token_losses(model, params, batches), batches)


def _token_losses(model: Model, params: Params, batch: LMBatch) -> Array:
    return head.token_loss(model.apply(params, batch), functools.partial(likelihood.cross_entropy, labels=batch.labels))


@functools.cache
def model_of(config: DecoderConfig) -> Model:
    """The model of a config, built once."""
    return build_model(config)


def root() -> Path:
    """The folder of the ablations."""
    return Path(__file__).parent
