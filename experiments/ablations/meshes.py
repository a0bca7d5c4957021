"""G14: a mesh of devices changes nothing.

lmx run experiments/ablations/meshes.py --workdir runs/ablations/G14

Loss and gradient of a Gemma 2 on eight simulated devices, as 8 data shards, 2 by 4 tensor shards and 8 tensor shards, against one
device. The devices are there from a process's start only, so this file runs itself in another process.

Hardware: a CPU, 2 cores.  Results: results/G14.json and RESULTS.md.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from configs.models import tiny
from experiments.ablations import bed
from lmx.core.types import PyTree
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, at_most, by_arm
from lmx.model.config import DecoderConfig
from lmx.model.decoder import build_model
from lmx.objectives.lm import language_model
from lmx.pipeline.experiment import Experiment
from lmx.sharding import DEFAULT_RULES, MeshConfig, build_mesh
from lmx.stages import Bench
from lmx.train.execution import build_execution
from lmx.train.spec import TrainSpec
from lmx.train.state import state_from_params
from lmx.train.step import build_step

ROWS, LENGTH = 8, 64
MESHES = {"8 x 1": MeshConfig(data=8), "2 x 4": MeshConfig(data=2, tensor=4), "1 x 8": MeshConfig(tensor=8)}
DEVICES = "--xla_force_host_platform_device_count=8"


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("G14", measure)


def measure(bench: Bench) -> Finding:
    """The greatest differences to one device, over all entries of the gradient."""
    found = bench.part("differences", lambda: _in_another_process(bench))
    meshes = tuple(MESHES)
    return Finding(
        outcomes={
            "greatest difference of the gradient's entries": by_arm(meshes, found["gradient"]),
            "difference of the loss (nats)": by_arm(meshes, found["loss"]),
        },
        checks=(
            at_most("greatest difference of the gradient's entries, any mesh", found["gradient"].max(axis=0), 1e-5),
            at_most("difference of the loss, any mesh (nats)", found["loss"].max(axis=0), 1e-5),
        ),
        bed=(
            f"Gemma 2 of {bed.model_of(_config()).num_params() // 1000}k parameters, float32, {ROWS} rows of {LENGTH} bytes "
            "of text, 8 simulated devices"
        ),
        note="Data x model as in the report; the gradients' entries reach from 0 to about 1.",
    )


def _config() -> DecoderConfig:
    return tiny.gemma2(
        264, num_layers=2, model_dim=32, q_heads=8, kv_heads=4, head_dim=8, ffn_dim=88, window=32, max_length=LENGTH
    )  # 264 rows of the table, of which text needs 259, divide by 8


def _in_another_process(bench: Bench) -> PyTree:
    path = Path(str(bench.folder)) / "differences.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
    command = [sys.executable, "-m", "experiments.ablations.meshes", str(path), *map(str, bench.seeds)]
    paths = os.pathsep.join([str(bed.root().parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    subprocess.run(command, check=True, env=environment, cwd=bed.root().parents[1])
    with np.load(path) as arrays:
        return dict(arrays)


def write_differences(path: str, seeds: list[int]) -> None:
    """Differences [meshes, seeds] of "loss" and "gradient" to one device."""
    batches = bed.text(seeds, 1, batch_size=ROWS, length=LENGTH)
    model = bed.model_of(_config())
    starts = [jax.device_get(model.init(jax.random.key(seed))) for seed in seeds]
    items = [jax.tree.map(lambda x, seed=number: x[seed, 0], batches) for number in range(len(seeds))]
    whole = _gradients(MeshConfig(), starts, items)
    differences: dict[str, list[list[float]]] = {"loss": [], "gradient": []}
    for mesh in MESHES.values():
        pairs = list(zip(_gradients(mesh, starts, items), whole, strict=True))
        differences["loss"].append([abs(loss - other) for (loss, _), (other, _) in pairs])
        differences["gradient"].append([_largest(gradient, other) for (_, gradient), (_, other) in pairs])
    np.savez(path, loss=np.array(differences["loss"]), gradient=np.array(differences["gradient"]))


def _largest(one: PyTree, other: PyTree) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def _gradients(config: MeshConfig, starts: list[PyTree], batches: list[LMBatch]) -> list[tuple[float, PyTree]]:
    """Loss and gradient of each start on its batch: descent with rate 1 moves the parameters by the gradient."""
    mesh = build_mesh(config, jax.devices()[:1] if config == MeshConfig() else None)
    model = build_model(_config(), build_execution(mesh, DEFAULT_RULES))
    spec = TrainSpec(
        model=model,
        objective=language_model(model.apply),
        optimizer=optax.sgd(1.0),
        clip_norm=None,
        batch_spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches[0]),
        mesh=mesh,
        rules=DEFAULT_RULES,
    )
    step = build_step(spec)
    found = []
    for params, batch in zip(starts, batches, strict=True):
        state, metrics = step(state_from_params(spec, params, jax.random.key(0)), {}, batch)
        found.append((float(metrics["loss"].mean()), jax.tree.map(np.subtract, params, jax.device_get(state.params))))
    return found


if __name__ == "__main__":
    write_differences(sys.argv[1], [int(seed) for seed in sys.argv[2:]])
