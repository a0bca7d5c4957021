"""What both sides share: the shapes, the batch, the optimizer's numbers, and the loop that answers the parent."""

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, LENGTH = 8, 512
LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0
MATRIX = 2048  # side of the square float32 matrices whose product gives the machine's rate
WARMUP_STEPS = 2
MODEL_DIM, LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM, FFN_DIM = 256, 4, 8, 4, 32, 688
WINDOW = 128
VOCABULARY = {"llama": 8192, "gemma2": 32768}


@dataclasses.dataclass(frozen=True)
class Trainee:
    """One side, compiled or ready to compile.

    Attributes:
      step: trains on the batch once and returns the loss before the update.
      matmul: one product of two [MATRIX, MATRIX] float32 matrices.
      flops_per_token: of the model's matrix products in a training step; None where the other side counts them.
    """

    step: Callable[[], float]
    matmul: Callable[[], Any]
    flops_per_token: float | None = None


def tokens(shape: str) -> np.ndarray:
    """[BATCH, LENGTH] int32, the one batch that both sides train on."""
    return np.random.default_rng(0).integers(0, VOCABULARY[shape], (BATCH, LENGTH), dtype=np.int32)


def serve(build: Callable[[str, Path], Trainee]) -> None:
    """Builds a side and answers "step N" and "matmul" from standard input with one line of JSON each.

    Args:
      build: (shape, folder) -> side; the folder is shared by both sides of one comparison.
    """
    parser = argparse.ArgumentParser(description="One side of tools/bench_train.py; started by it.")
    parser.add_argument("shape", choices=sorted(VOCABULARY))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    trainee = build(options.shape, options.folder)
    losses = [trainee.step() for _ in range(WARMUP_STEPS)]
    trainee.matmul()
    _answer(first_loss=losses[0], flops_per_token=trainee.flops_per_token)
    for request in sys.stdin:
        kind, *count = request.split()
        started = time.perf_counter()
        if kind == "matmul":
            trainee.matmul()
            _answer(flops_per_second=2 * MATRIX**3 / (time.perf_counter() - started))
        else:
            steps = int(count[0])
            losses = [trainee.step() for _ in range(steps)]
            speed = steps * BATCH * LENGTH / (time.perf_counter() - started)
            _answer(tokens_per_second=speed, loss=losses[-1], peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _answer(**values: float | None) -> None:
    print(json.dumps(values), flush=True)
