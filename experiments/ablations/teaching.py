"""Teachers and students of the distillation ablations: text in bytes, one teacher for all seeds, the share of labels as a knob."""

import functools
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from configs.models import tiny
from experiments.ablations import bed
from lmx.core.types import Array, Metrics, Objective, Params, Terms
from lmx.data.batches import LMBatch
from lmx.kernels import head
from lmx.losses import divergence, likelihood
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model
from lmx.optim import WarmupCosine
from lmx.train import population

LENGTH = 64
TEACHER_SEED = 100


def config(model_dim: int) -> DecoderConfig:
    """A Llama of two layers, heads of 8 and an FFN of 2.75 times the width."""
    heads = model_dim // 8
    return tiny.llama3(
        bed.BYTES.vocab_size,
        num_layers=2,
        model_dim=model_dim,
        q_heads=heads,
        kv_heads=heads,
        head_dim=8,
        ffn_dim=model_dim * 11 // 4,
        max_length=LENGTH,
        lengthening=1,
    )


@functools.cache
def teacher(model_dim: int = 64, *, steps: int = 600, batch_size: int = 32) -> Params:
    """A model trained on labels, leaves without leading axes; once a process."""
    model = bed.model_of(config(model_dim))
    batches = bed.text([TEACHER_SEED], steps, batch_size=batch_size, length=LENGTH)
    trained = population.train(
        bed.spec(model, distillation(model, None), batches),
        population.initial(model, [TEACHER_SEED]),
        batches,
        rates=rates(steps, 1),
        knobs={"alpha": np.zeros(1, np.float32)},
    )
    return _member(trained.params)


def rates(steps: int, arms: int, *, peak: float = 4e-3) -> np.ndarray:
    """[A, N]: warm-up and a cosine down to zero."""
    return population.rates([WarmupCosine(peak=peak, warmup_steps=min(30, steps // 10), end_ratio=0.0)] * arms, steps)


def of_seeds(params: Params, seeds: Sequence[int]) -> Params:
    """The same teacher for every seed: leaves [S, ...]."""
    return population.repeated(params, len(seeds))


def own_loss(model_dim: int, params: Params, heldout: LMBatch) -> float:
    """A teacher's held-out loss in nats a token."""
    return float(
        bed.mean_losses(bed.model_of(config(model_dim)), population.repeated(population.repeated(params, 1), 1), heldout)[0, 0]
    )


def distillation(model: Model, teacher: Model | None) -> Objective:
    """`(1 - alpha) * cross-entropy + alpha * KL(teacher || student)`, as `lmx.objectives.distillation` with a traced alpha.

    Args:
      model: the student.
      teacher: its parameters are `frozen["teacher"]`; None = labels alone.

    Returns:
      Objective that reads the share of the teacher, [], in `frozen["alpha"]`.
    """

    def loss(params: Params, frozen: Mapping[str, Params], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        outputs = [model.apply(params, batch)]
        if teacher is not None:
            outputs.append(teacher.apply(frozen["teacher"], batch))
        total, metrics = head.token_loss_sum(
            *outputs, partial(_mixed, labels=batch.labels, alpha=frozen["alpha"]), mask=batch.loss_mask
        )
        return {"loss": (1.0, total)}, metrics

    return loss


def _mixed(student: Array, teacher: Array | None = None, *, labels: Array, alpha: Array) -> tuple[Array, dict[str, Array]]:
    nll = likelihood.cross_entropy(student, labels=labels)
    if teacher is None:
        return nll, {"nll": nll}
    kl = divergence.forward_kl(teacher, student)
    return (1 - alpha) * nll + alpha * kl, {"nll": nll, "kl": kl}


def _member(params: Params) -> Params:
    return jax.tree.map(lambda x: np.asarray(x[0, 0]), params)
