"""Generated tokens/s of lmx's engine beside Hugging Face transformers on torch (CPU), in one run.

    make bench && .venv/bin/python tools/bench_generate.py

Both sides have the same weights and complete the same random prompts of 64 tokens by 128 more: greedy, EOS ignored, float32. So
their tokens must agree, and the run fails if they don't. Each side lives in a process of its own and they take turns, so that a
machine whose speed drifts is fair to both; the first, compiling calls are not measured.

Prefill is the time to the first token, a call for one token; decode is the rest of a call for all. "of limit" is the time that the
machine's memory (weights, keys and values read once a step) or its matrix products need at least, whichever is longer, divided by
the time taken; the machine's rates are the best sum of a large array and the best product of two square matrices that any side
reached, tried after every turn. What fits the caches, as the tiny model does, may exceed the memory's rate.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.bench_sides import generate_protocol as protocol
from tools.bench_sides.parent import Side, positive

SIDES = {"lmx": "tools.bench_sides.generate_lmx", "torch": "tools.bench_sides.generate_torch"}  # the first writes the weights
TITLES = {
    "tiny": "Llama, 4 layers of 256, 8 query and 4 KV heads, FFN 688, vocabulary 8192",
    "135m": "Llama, 30 layers of 576, 9 query and 3 KV heads, FFN 1536, vocabulary 49152, tied",
}
ROUNDS = {"tiny": 5, "135m": 2}
AGREEMENT = 0.9  # share of rows whose first tokens must be the same; a tie may break the other way
COMPARED = 16  # tokens of a row


@dataclasses.dataclass(frozen=True)
class Turn:
    """Seconds that a side took for its prompts' first tokens and for all tokens."""

    first: float
    whole: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates: float32 operations of matrix products, and bytes read from memory, each a second."""

    flops: float
    read: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call must do at least.

    Attributes:
      prefill_flops: of the prompts' matrix products, the head's of the last tokens alone.
      decode_flops: of all decode steps.
      decode_bytes: of all decode steps: weights, keys and values.
    """

    prefill_flops: float
    decode_flops: float
    decode_bytes: float


def work(shape: protocol.Shape, batch: int) -> Work:
    """Counts the matrix products and reads of one call."""
    prompt, steps = protocol.PROMPT, protocol.NEW - 1
    heads = shape.head_dim * (2 * shape.q_heads + 2 * shape.kv_heads)
    layers = shape.layers * shape.model_dim * (heads + 3 * shape.ffn_dim)
    head = shape.vocabulary * shape.model_dim
    attention = 4 * shape.layers * shape.q_heads * shape.head_dim  # FLOPs for each pair of a query and a key
    pairs = sum(prompt + step for step in range(1, steps + 1))
    return Work(
        prefill_flops=batch * (prompt * 2 * layers + 2 * head + attention * prompt * (prompt + 1) / 2),
        decode_flops=batch * (steps * 2 * (layers + head) + attention * pairs),
        decode_bytes=4.0 * (steps * (layers + head) + batch * pairs * 2 * shape.layers * shape.kv_heads * shape.head_dim),
    )


def table(shape: str, turns: dict[int, dict[str, list[Turn]]], machine: Machine) -> str:
    """The report of one shape: for each batch size a line a side, and their ratio.

    Args:
      shape: key of `protocol.SHAPES`.
      turns: batch size -> side -> its turns; lmx is first.
      machine: rates.
    """
    lines = [
        f"{TITLES[shape]}: {os.cpu_count()} cores, float32 matmul {machine.flops / 1e9:.0f} GFLOP/s, "
        f"memory {machine.read / 1e9:.0f} GB/s",
        f"  {'batch':>5} {'':6}{'tokens/s (min-max)':>24}{'prefill':>10}{'of limit':>9}{'decode tokens/s':>17}{'of limit':>9}",
    ]
    for batch, sides in turns.items():
        need = work(protocol.SHAPES[shape], batch)
        decode_limit = max(need.decode_flops / machine.flops, need.decode_bytes / machine.read)
        for side, taken in sides.items():
            speeds = [batch * protocol.NEW / turn.whole for turn in taken]
            first = statistics.median(turn.first for turn in taken)
            rest = statistics.median(turn.whole - turn.first for turn in taken)
            lines.append(
                f"  {batch:>5} {side:6}"
                f"{f'{statistics.median(speeds):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})':>24}"
                f"{f'{1e3 * first:,.0f} ms':>10}{need.prefill_flops / machine.flops / first:>9.0%}"
                f"{batch * (protocol.NEW - 1) / rest:>17,.0f}{decode_limit / rest:>9.0%}"
            )
        ours, theirs = sides.values()
        ratios = [b.whole / a.whole for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"  {batch:>5} lmx / torch: {statistics.median(ratios):.2f} (turn by turn {min(ratios):.2f}-{max(ratios):.2f}); "
            f"decode limited by {'matmul' if need.decode_flops / machine.flops > need.decode_bytes / machine.read else 'memory'}"
        )
    return "\n".join(lines)


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of rows whose first `COMPARED` tokens are the same on both sides."""
    same = [a[:COMPARED] == b[:COMPARED] for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def compare(shape: str, batches: list[int], rounds: int) -> tuple[dict[int, dict[str, list[Turn]]], Machine, float]:
    """Runs both sides in turn; returns the turns, the machine's rates, and the least agreement."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Side("bench_generate", module, shape, folder) for name, module in SIDES.items()}
        turns: dict[int, dict[str, list[Turn]]] = {}
        flops, read, agreed = [], [], []
        for batch in batches:
            warm = {name: side.ask(f"generate {batch} {protocol.NEW}")["tokens"] for name, side in sides.items()}
            agreed.append(agreement(*warm.values()))
            for side in sides.values():
                side.ask(f"generate {batch} 1")
            turns[batch] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, side in sides.items():
                    first, whole = side.ask(f"generate {batch} 1"), side.ask(f"generate {batch} {protocol.NEW}")
                    turns[batch][name].append(Turn(first["seconds"], whole["seconds"]))
                for side in sides.values():
                    flops += [2 * protocol.MATRIX**3 / side.ask("matmul")["seconds"] for _ in range(2)]
                    read += [protocol.READ_BYTES / side.ask("read")["seconds"] for _ in range(2)]
        for side in sides.values():
            side.stop()
    return turns, Machine(max(flops), max(read)), min(agreed)


def main() -> None:
    """Parses the command line, compares each shape and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(protocol.SHAPES), default=list(protocol.SHAPES), help="models")
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8, 32], help="batch sizes (default: 1 8 32)")
    parser.add_argument("--rounds", type=positive, help=f"turns of each side (default: {ROUNDS})")
    options = parser.parse_args()
    for shape in options.shapes:
        turns, machine, agreed = compare(shape, options.batches, options.rounds or ROUNDS[shape])
        print(table(shape, turns, machine), flush=True)
        if agreed < AGREEMENT:
            sys.exit(f"bench_generate: only {agreed:.0%} of rows begin with the same tokens, so the sides run different models")


if __name__ == "__main__":
    main()
