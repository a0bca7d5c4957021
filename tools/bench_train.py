"""Training tokens/s and peak memory of lmx beside Hugging Face transformers on torch, at the same shapes, in one run.

    make bench && .venv/bin/python tools/bench_train.py

Batch, dtype and optimizer are the same too. Each side trains in a process of its own; the two take turns, so that a machine whose
speed drifts is fair to both. A step is forward, backward, clipping by the global norm, and AdamW, on one fixed batch of random
tokens, so both losses must start near ln V and fall.
FLOPs are those of the matrix products (`lmx.model.accounting`), equal for both sides; the machine's rate is that of the faster of
jax's and torch's float32 product of two square matrices, measured in the same run.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, LENGTH, LEARNING_RATE, MATRIX = 8, 512, 1e-3, 2048
SHAPES = ("llama", "gemma2")
SIDES = ("lmx", "torch")
VOCABULARY = {"llama": 8192, "gemma2": 32768}
MODEL = {"model_dim": 256, "num_layers": 4, "q_heads": 8, "kv_heads": 4, "head_dim": 32, "ffn_dim": 688}
WINDOW = 128


def main() -> None:
    """Runs the benchmark, or one side of it as a child."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="models to train")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn (default: %(default)s)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        _serve(options.side, options.shapes[0], options.steps)
        return
    for shape in options.shapes:
        print(_compare(shape, options.rounds, options.steps), flush=True)


def _compare(shape: str, rounds: int, steps: int) -> str:
    """Trains both sides in turn and formats a table."""
    workers = {side: _start(side, shape, steps) for side in SIDES}
    ready = {side: _ask(worker, None) for side, worker in workers.items()}  # imported, compiled, warmed up
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, worker in workers.items():
            turns[side].append(_ask(worker, "step"))
    rates = {side: _ask(worker, "matmul")["flops"] for side, worker in workers.items()}
    for worker in workers.values():
        worker.communicate()
    machine = max(rates.values())
    flops = ready["lmx"]["flops_per_token"]
    lines = [
        f"{shape}: {BATCH} x {LENGTH} tokens, float32, {os.cpu_count()} cores; float32 matmul {machine / 1e9:.0f} GFLOP/s",
        f"  {'':6} {'tokens/s (min-max)':>24} {'of matmul rate':>15} {'peak memory':>12} {'first loss':>11} {'last loss':>10}",
    ]
    medians = {}
    for side in SIDES:
        speeds = [turn["tokens_per_second"] for turn in turns[side]]
        medians[side], last = statistics.median(speeds), turns[side][-1]
        lines.append(
            f"  {side:6} {f'{medians[side]:,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})':>24} "
            f"{medians[side] * flops / machine:>15.0%} {last['peak_bytes'] / 2**30:>8.2f} GiB "
            f"{ready[side]['loss']:>11.3f} {last['loss']:>10.3f}"
        )
    pairs = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in zip(*turns.values(), strict=True)]
    lines.append(f"  lmx / torch: {statistics.median(pairs):.2f} (turn by turn {min(pairs):.2f}-{max(pairs):.2f})")
    return "\n".join(lines)


def _start(side: str, shape: str, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", side, "--shapes", shape, "--steps", str(steps)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(worker: subprocess.Popen[str], request: str | None) -> dict[str, float]:
    """Sends a request (None = just listen) and returns the answer; exits with a sentence when the worker has died."""
    assert worker.stdin is not None and worker.stdout is not None
    if request is not None:
        print(request, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"bench_train: a side died with exit code {worker.wait()}; its error stands above (is `make bench` done?)")
    return json.loads(line)


def _serve(side: str, shape: str, steps: int) -> None:
    """A child: answers "step" and "matmul" with one JSON line each."""
    step, matmul, flops = (_lmx_side if side == "lmx" else _torch_side)(shape)
    first = step()
    step()
    print(json.dumps({"loss": first, "flops_per_token": flops}), flush=True)
    for request in map(str.strip, sys.stdin):
        started = time.perf_counter()
        if request == "matmul":
            seconds = min(_timed(matmul) for _ in range(5))
            print(json.dumps({"flops": 2 * MATRIX**3 / seconds}), flush=True)
            continue
        loss = [step() for _ in range(steps)][-1]
        speed = steps * BATCH * LENGTH / (time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"tokens_per_second": speed, "loss": loss, "peak_bytes": peak}), flush=True)


def _timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _tokens(shape: str) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCABULARY[shape], (BATCH, LENGTH), dtype=np.int32)


def _lmx_side(shape: str) -> tuple[Callable[[], float], Callable[[], Any], float]:
    """A step of lmx: returns (step -> loss, a matrix product, FLOPs a token)."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import jax
    import jax.numpy as jnp
    import optax

    from configs.models import tiny
    from lmx.data.batches import LMBatch, lm_batch_spec
    from lmx.model.accounting import flops_per_token
    from lmx.model.decoder import build_model
    from lmx.objectives import language_model
    from lmx.sharding.mesh import MeshConfig, build_mesh
    from lmx.sharding.rules import DEFAULT_RULES
    from lmx.train.execution import build_execution
    from lmx.train.spec import TrainSpec
    from lmx.train.state import init_state
    from lmx.train.step import build_step

    if shape == "llama":
        config = tiny.llama3(VOCABULARY[shape], **MODEL, max_length=LENGTH)
    else:
        config = tiny.gemma2(VOCABULARY[shape], **MODEL, window=WINDOW, max_length=LENGTH)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    model = build_model(config, build_execution(mesh, DEFAULT_RULES))
    spec = TrainSpec(
        model=model,
        objective=language_model(model.apply),
        optimizer=optax.adamw(LEARNING_RATE),
        batch_spec=lm_batch_spec(BATCH, LENGTH),
        mesh=mesh,
        rules=DEFAULT_RULES,
    )
    tokens = _tokens(shape)
    batch = LMBatch(
        tokens=jnp.asarray(tokens),
        labels=jnp.roll(tokens, -1, axis=1),
        loss_mask=jnp.broadcast_to(jnp.arange(LENGTH) < LENGTH - 1, tokens.shape),
        segment_ids=jnp.ones_like(tokens),
        positions=jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape),
    )
    train_step, state = build_step(spec), init_state(spec, jax.random.key(0))

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, {}, batch)
        return float(metrics["loss"].mean())

    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((MATRIX, MATRIX))
    return step, lambda: product(matrix, matrix).block_until_ready(), flops_per_token(config, LENGTH, training=True)


def _torch_side(shape: str) -> tuple[Callable[[], float], Callable[[], Any], float]:
    """A step of transformers on torch: returns (step -> loss, a matrix product, 0)."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY[shape],
        "hidden_size": MODEL["model_dim"],
        "num_hidden_layers": MODEL["num_layers"],
        "num_attention_heads": MODEL["q_heads"],
        "num_key_value_heads": MODEL["kv_heads"],
        "head_dim": MODEL["head_dim"],
        "intermediate_size": MODEL["ffn_dim"],
        "max_position_embeddings": LENGTH,
        "use_cache": False,
    }
    if shape == "llama":  # torch's fused attention; Gemma 2's soft caps have none, so transformers advises "eager"
        config = transformers.LlamaConfig(**common, tie_word_embeddings=False, attn_implementation="sdpa")
    else:
        config = transformers.Gemma2Config(**common, sliding_window=WINDOW, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.from_numpy(_tokens(shape)).long()

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    matrix = torch.ones(MATRIX, MATRIX)
    return step, lambda: matrix @ matrix, 0.0


if __name__ == "__main__":
    main()
