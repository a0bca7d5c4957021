"""Training tokens/s and peak memory of lmx beside Hugging Face transformers on torch (CPU), in one run.

    make bench && .venv/bin/python tools/bench_train.py

Both sides train the same model from the same weights on the same batch of random tokens, in float32, with the same optimizer: a
step is forward, backward, clipping by the global norm, and AdamW. So their losses must agree, and the run fails if the first ones
don't. Each side lives in a process of its own and they take turns, so that a machine whose speed drifts is fair to both;
compilation and the first steps are not measured. FLOPs are those of the model's matrix products (`lmx.model.accounting`); the
machine's rate is the best product of two square float32 matrices by either library, tried after every turn. Memory is the peak
resident size of the whole process.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.bench_sides.parent import Side, positive

SHAPES = {
    "llama": "Llama, 4 layers of 256, 8 query and 4 KV heads, FFN 688, vocabulary 8192",
    "gemma2": "Gemma 2, the same with window 128 on every other layer, soft caps, vocabulary 32768",
}
SIDES = {"lmx": "tools.bench_sides.lmx_side", "torch": "tools.bench_sides.torch_side"}  # the first writes the weights
LOSS_TOLERANCE = 1e-3  # nats, between the first losses


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The measurements of one shape.

    Attributes:
      turns: for each side, its turns: tokens_per_second, loss after the turn, peak_bytes.
      first_loss: for each side, before any update.
      flops_per_token: of a training step.
      matmul_rate: FLOP/s of the machine.
    """

    turns: dict[str, list[dict[str, float]]]
    first_loss: dict[str, float]
    flops_per_token: float
    matmul_rate: float

    def table(self, title: str) -> str:
        """The report, one line a side and their ratio."""
        lines = [
            f"{title}: {os.cpu_count()} cores, float32 matmul {self.matmul_rate / 1e9:.0f} GFLOP/s",
            f"  {'':6}{'tokens/s (min-max)':>24}{'of matmul rate':>16}{'peak memory':>13}{'first loss':>12}{'last loss':>11}",
        ]
        for side, turns in self.turns.items():
            speeds = [turn["tokens_per_second"] for turn in turns]
            median, last = statistics.median(speeds), turns[-1]
            lines.append(
                f"  {side:6}{f'{median:,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})':>24}"
                f"{median * self.flops_per_token / self.matmul_rate:>16.0%}{last['peak_bytes'] / 2**30:>9.2f} GiB"
                f"{self.first_loss[side]:>12.4f}{last['loss']:>11.4f}"
            )
        ratios = [
            ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in zip(*self.turns.values(), strict=True)
        ]
        memory = self.turns["lmx"][-1]["peak_bytes"] / self.turns["torch"][-1]["peak_bytes"]
        lines.append(
            f"  lmx / torch: tokens/s {statistics.median(ratios):.2f} (turn by turn {min(ratios):.2f}-{max(ratios):.2f}), "
            f"memory {memory:.2f}"
        )
        return "\n".join(lines)


def main() -> None:
    """Parses the command line, compares each shape and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="models to train")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=3, help="steps a turn (default: %(default)s)")
    options = parser.parse_args()
    for shape in options.shapes:
        comparison = compare(shape, options.rounds, options.steps)
        print(comparison.table(SHAPES[shape]), flush=True)
        difference = abs(comparison.first_loss["lmx"] - comparison.first_loss["torch"])
        if difference > LOSS_TOLERANCE:
            sys.exit(f"bench_train: the first losses differ by {difference:.4f} nats, so the two sides train different models")


def compare(shape: str, rounds: int, steps: int) -> Comparison:
    """Trains both sides in turn, `steps` steps a turn."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Side("bench_train", module, shape, folder) for name, module in SIDES.items()}
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        rates = []
        for _ in range(rounds):
            for name, side in sides.items():
                turns[name].append(side.ask(f"step {steps}"))
            rates += [side.ask("matmul")["flops_per_second"] for side in sides.values() for _ in range(2)]
        for side in sides.values():
            side.stop()
    first_loss = {name: side.ready["first_loss"] for name, side in sides.items()}
    return Comparison(turns, first_loss, sides["lmx"].ready["flops_per_token"], max(rates))


if __name__ == "__main__":
    main()
