"""The bed of AFM's ablations: small members of its family, and its optimizer for populations that sweep the rate."""

from collections.abc import Sequence

import numpy as np

from configs.models import tiny
from experiments.ablations.bed import BYTES
from lmx.model.config import DecoderConfig
from lmx.optim import Constant, MuPSimple, RMSProp, WarmupCosine
from lmx.train import population

PEAK, DECAY = 0.01, 3.16e-4  # of the report, at the base width
END_RATIO = 0.005


def decoder(*, model_dim: int = 32, ffn_dim: int | None = None, num_layers: int = 2, max_length: int = 64) -> DecoderConfig:
    """A small AFM over bytes: heads of 16, half as many KV heads, an FFN of 2.75 times the width unless said otherwise."""
    return tiny.afm(
        BYTES.vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        q_heads=model_dim // 16,
        kv_heads=max(1, model_dim // 32),
        ffn_dim=ffn_dim or model_dim * 11 // 4,
        max_length=max_length,
    )


def rmsprop(*, base_width: int | None = None, weight_decay: float = DECAY / PEAK) -> RMSProp:
    """AFM's optimizer at the rate 1, which `population.train` multiplies.

    There the rate multiplies the decay too, so the decay is given over the report's peak: a member at the report's rate decays by
    the report's 3.16e-4 a step, others in proportion to their rates. Over a few hundred steps that is a few percent.

    Args:
      base_width: of muP-simple; None = without it.
      weight_decay: over the peak.
    """
    mup = None if base_width is None else MuPSimple(base_width=base_width)
    return RMSProp(schedule=Constant(value=1.0), weight_decay=weight_decay, mup=mup)


def rates(peaks: Sequence[float], steps: int, *, warmup_steps: int | None = None, end_ratio: float = END_RATIO) -> np.ndarray:
    """[A, N] rates of AFM's schedule, one arm a peak; by default a twentieth of the steps warms up."""
    warmup = steps // 20 if warmup_steps is None else warmup_steps
    return population.rates([WarmupCosine(peak=peak, warmup_steps=warmup, end_ratio=end_ratio) for peak in peaks], steps)
