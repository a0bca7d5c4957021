"""Writes the goldens that `make test` compares lmx with: what transformers computes for each case.

    make parity && .venv/bin/python -m tools.parity.record

A golden holds the checkpoint's `config.json` as transformers wrote it, names and shapes of its tensors (their values follow from
the names), logits of the batch, and greedy continuations of the prompts.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tools.parity import cases, reference

GOLDENS = Path(__file__).parents[2] / "tests" / "convert" / "goldens" / "parity"


def main() -> None:
    """Writes one `<case>.json` and one `<case>.npz` a case."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for name, case in cases.CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            reference.save(case, folder)
            config = json.loads((folder / "config.json").read_text())
            shapes = {key: list(tensor.shape) for key, tensor in load_file(folder / "model.safetensors").items()}
            model = reference.load(folder)
        record = {"config": config, "tensors": shapes, "greedy": reference.greedy(model)}
        (GOLDENS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        _, mask = cases.batch()
        np.savez_compressed(GOLDENS / f"{name}.npz", logits=reference.logits(model)[mask])
        print(f"{name}: {len(shapes)} tensors")


if __name__ == "__main__":
    main()
