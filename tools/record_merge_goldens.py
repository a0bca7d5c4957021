"""Records what mergekit makes of small random tensors, for tests/merging/test_mergekit.py.

mergekit (LGPL) is no dependency of lmx. Its wheel, unpacked anywhere on PYTHONPATH, runs beside torch:

    pip download --no-deps mergekit==0.1.5 && unzip mergekit-*.whl -d /tmp/mergekit
    PYTHONPATH=/tmp/mergekit:. .venv/bin/python tools/record_merge_goldens.py tests/merging/goldens/mergekit.json
"""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.slerp import slerp

SHAPE, MODELS = (5, 8), 3
WEIGHTS = (0.6, 0.3, 0.25)


def inputs(seed: int = 0) -> list[np.ndarray]:
    """The base and the models after it, [5, 8] float32."""
    random = np.random.default_rng(seed)
    base = random.normal(size=SHAPE)
    return [x.astype(np.float32) for x in (base, *(base + 0.1 * random.normal(size=SHAPE) for _ in range(MODELS)))]


def general(name: str, **settings: Any) -> torch.Tensor:
    """A method of task vectors."""
    method = registry.get(name)
    group = TensorGroup.from_tensors([torch.tensor(x) for x in inputs()], base_index=0)
    weights = dict(enumerate(settings.pop("weight"), start=1))
    density = dict.fromkeys(weights, settings.pop("density", 1.0))
    plain = {"int8_mask": False, "rescale": False, "lambda": 1.0, **settings}
    return method.merge_group(group, weight=weights, density=density, **plain)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    _, first, second, _ = (torch.tensor(x) for x in inputs())
    found = {
        "task_arithmetic": general("task_arithmetic", weight=WEIGHTS, normalize=False),
        "ties": general("ties", weight=(1.0,) * MODELS, density=0.4, normalize=True),
        "ties_weighted": general("ties", weight=WEIGHTS, density=0.4, normalize=True, **{"lambda": 0.7}),
        "dare_ties_all_kept": general("dare_ties", weight=WEIGHTS, normalize=True),
        "slerp_raw": slerp(torch.tensor([0.3]), first[None], second[None])[0],
    }
    inputs_used = [x.ravel().tolist() for x in inputs()]
    values = {name: tensor.numpy().ravel().tolist() for name, tensor in found.items()}
    record = {"shape": SHAPE, "weights": WEIGHTS, "inputs": inputs_used, "results": values}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": {"torch": torch.__version__}, **record}) + "\n")
    print(f"{out}: {', '.join(values)} (torch {importlib.metadata.version('torch')})")


if __name__ == "__main__":
    main()
