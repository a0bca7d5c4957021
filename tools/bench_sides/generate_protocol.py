"""What the sides of `tools/bench_generate.py` share: the models, the prompts, and the loop that answers the parent."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_sides import protocol as training
from tools.bench_sides.protocol import MATRIX as MATRIX

PROMPT, NEW = 64, 128  # tokens
READ_BYTES = 2**28  # of the array whose sum gives the memory's rate; larger than any cache
INIT_STD = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama."""

    vocabulary: int
    model_dim: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    tied: bool


SHAPES = {
    "tiny": Shape(  # that of tools/bench_train.py
        vocabulary=training.VOCABULARY["llama"],
        model_dim=training.MODEL_DIM,
        layers=training.LAYERS,
        q_heads=training.Q_HEADS,
        kv_heads=training.KV_HEADS,
        head_dim=training.HEAD_DIM,
        ffn_dim=training.FFN_DIM,
        tied=False,
    ),
    "135m": Shape(vocabulary=49152, model_dim=576, layers=30, q_heads=9, kv_heads=3, head_dim=64, ffn_dim=1536, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Generator:
    """One side.

    Attributes:
      generate: (prompts [B, PROMPT] int32, number of new tokens) -> the new tokens, greedy, EOS ignored: [B, new].
      matmul: one product of two [MATRIX, MATRIX] float32 matrices.
      read: the sum of an array of READ_BYTES.
    """

    generate: Callable[[np.ndarray, int], np.ndarray]
    matmul: Callable[[], Any]
    read: Callable[[], Any]


def prompts(shape: str, batch: int) -> np.ndarray:
    """[batch, PROMPT] int32 random ids, the same for every side."""
    return np.random.default_rng(batch).integers(0, SHAPES[shape].vocabulary, (batch, PROMPT), dtype=np.int32)


def serve(build: Callable[[str, Path], Generator]) -> None:
    """Builds a side and answers "generate B NEW", "matmul" and "read" from standard input with one line of JSON each.

    Args:
      build: (shape, folder) -> side; the folder is shared by all sides of one comparison.
    """
    parser = argparse.ArgumentParser(description="One side of tools/bench_generate.py; started by it.")
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    side = build(options.shape, options.folder)
    print(json.dumps({"ready": True}), flush=True)
    for request in sys.stdin:
        kind, *numbers = request.split()
        if kind == "generate":
            batch, new = map(int, numbers)
            given = prompts(options.shape, batch)
            started = time.perf_counter()
            tokens = side.generate(given, new)
            answer = {"seconds": time.perf_counter() - started, "tokens": np.asarray(tokens).tolist()}
        else:
            started = time.perf_counter()
            (side.matmul if kind == "matmul" else side.read)()
            answer = {"seconds": time.perf_counter() - started}
        print(json.dumps(answer), flush=True)
