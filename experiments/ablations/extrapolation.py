"""M8: YaRN and dual chunk attention extend the context without training.

lmx run experiments/ablations/extrapolation.py --workdir runs/ablations/M8

A model trained on rows of 64, with Qwen 2's first RoPE base matched to that length, reads rows of 256 as it is, with linear
interpolation, with YaRN and by dual chunks. All scores are relative to the model's own loss on positions 32..63.

Hardware: a CPU, 2 cores.  Results: results/M8.json and RESULTS.md.
"""

import dataclasses

import numpy as np

from configs.models import tiny
from experiments.ablations import bed
from lmx.eval.claims import Finding, above, at_most, below, by_arm
from lmx.model.config import DecoderConfig, DualChunk, LinearScaling, YarnScaling
from lmx.model.context import with_context
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

STEPS, PEAK, BATCH = 500, 5e-3, 16
WINDOW, FACTOR, CHUNK = 64, 4, 40
HEAD_DIM = 16
BUCKETS = ((0, 32), (32, 64), (64, 128), (128, 192), (192, 256))


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M8", measure)


def measure(bench: Bench) -> Finding:
    """One training, five ways to read on."""
    found = bench.part("losses", lambda: _losses(bench))
    losses, beyond = found["buckets"], found["beyond"]  # [arms, buckets, seeds], [arms, seeds]
    window = losses[0, 1]
    excess = beyond / window - 1
    arms = tuple(_arms())
    best = excess[2:].min(axis=0)
    outcomes = {
        f"loss at positions {low}..{high - 1} (nats)": by_arm(arms, losses[:, bucket]) for bucket, (low, high) in enumerate(BUCKETS)
    }
    return Finding(
        outcomes={**outcomes, "loss at 64..255 over the loss at 32..63, less 1": by_arm(arms, excess)},
        checks=(
            at_most("best of YaRN and dual chunks at 64..255, above the in-window loss (share)", best, 0.05),
            above("nothing done, above the in-window loss (share)", excess[0], 0.05),
            below("what is left by the best of YaRN and dual chunks of the excess (share)", best / excess[0], 0.5),
            at_most("change of a token's loss by dual chunks within the first chunk (nats, largest)", found["inside"], 1e-4),
        ),
        bed=f"Qwen2 of width 64, 2 layers, Python's documentation in bytes, {STEPS} steps of {BATCH * WINDOW}",
    )


def _arms() -> dict[str, DecoderConfig]:
    config = tiny.qwen2(bed.BYTES.vocab_size, num_layers=2, head_dim=HEAD_DIM, max_length=WINDOW * FACTOR)
    theta = tiny.matched_theta(1e4, trained_length=4096, full_head_dim=128, length=WINDOW, head_dim=HEAD_DIM)
    plain = with_context(config, rope_theta=theta)
    return {
        "nothing": plain,
        "linear interpolation": with_context(plain, rope_scaling=LinearScaling(factor=FACTOR)),
        "YaRN": with_context(plain, rope_scaling=YarnScaling(factor=FACTOR, original_length=WINDOW)),
        "dual chunks": _chunked(plain, DualChunk(window=WINDOW, chunk_size=CHUNK)),
        "dual chunks, temperature": _chunked(plain, DualChunk(window=WINDOW, chunk_size=CHUNK, length_factor=FACTOR)),
    }


def _chunked(config: DecoderConfig, chunks: DualChunk) -> DecoderConfig:
    blocks = tuple(
        dataclasses.replace(block, attention=dataclasses.replace(block.attention, dual_chunk=chunks))
        for block in config.layer_pattern
    )
    return dataclasses.replace(config, layer_pattern=blocks)


def _losses(bench: Bench) -> dict[str, np.ndarray]:
    """Losses [arms, buckets, seeds] and [arms, seeds] beyond the window, and the largest change in the first chunk, [seeds]."""
    arms = _arms()
    model, batches = bed.model_of(arms["nothing"]), bed.text(bench.seeds, STEPS, batch_size=BATCH, length=WINDOW)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds),
        batches,
        rates=population.rates([WarmupCosine(peak=PEAK, warmup_steps=20)], STEPS),
    )
    heldout = bed.heldout(24, batch_size=8, length=WINDOW * FACTOR)
    positions = np.asarray(heldout.positions)
    losses = [bed.token_losses(bed.model_of(config), trained.params, heldout) for config in arms.values()]

    def of(values: np.ndarray, low: int, high: int) -> np.ndarray:
        return population.mean_over_tokens(values, heldout, (positions >= low) & (positions < high))[0]

    inside = np.asarray(heldout.loss_mask) & (positions < CHUNK)
    return {
        "buckets": np.stack([np.stack([of(values, *bucket) for bucket in BUCKETS]) for values in losses]),
        "beyond": np.stack([of(values, WINDOW, WINDOW * FACTOR) for values in losses]),
        "inside": (np.abs(losses[3] - losses[0]) * inside)[0].max(axis=(1, 2, 3)),
    }
