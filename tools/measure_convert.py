"""Peak memory and time of a conversion as large as Llama 3.1 8B (or as asked): `python tools/measure_convert.py`.

Builds a Hugging Face checkpoint of sparse files (the numbers are zeros, the sizes real), converts it in a child process of its
own, and compares the child's peak resident memory with the bound: twice the largest tensor of the source plus 1 GiB. With
`--export` it goes on and converts the artifact back, which takes the model's full size on the disk. Linux only (/proc).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from configs.models import llama3
from lmx.convert.families.llama import LLAMA
from lmx.convert.rules import expand
from lmx.convert.safetensors.writer import SafetensorsWriter
from lmx.model.config import DecoderConfig

GIB = 1 << 30
_CHILD = """
import sys
from lmx.convert import convert
report = convert(sys.argv[1], sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.parameters, int(peak.split()[1]) * 1024)
"""


def main() -> int:
    """Runs the measurement; 1 if a bound is exceeded."""
    parser = argparse.ArgumentParser(description="Peak memory and time of a conversion.")
    parser.add_argument("--layers", type=int, default=32, help="layers of the model (default: %(default)s, an 8B model)")
    parser.add_argument("--random-layers", type=int, default=0, help="of them, layers with random numbers (they take disk space)")
    parser.add_argument("--export", action="store_true", help="convert the artifact back too")
    parser.add_argument("--directory", help="where to build it (default: the system's folder for temporary files)")
    options = parser.parse_args()
    config = llama3.decoder(num_layers=options.layers, model_dim=4_096, q_heads=32, ffn_dim=14_336)
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        source, artifact = Path(folder) / "hf", Path(folder) / "lmx"
        largest = build(source, config, options.random_layers)
        peaks = [measure("hf -> lmx", source, artifact, largest)]
        if options.export:
            peaks.append(measure("lmx -> hf", artifact, Path(folder) / "back", largest))
    return 0 if max(peaks) <= bound(largest) else 1


def build(directory: Path, config: DecoderConfig, random_layers: int) -> int:
    """Writes a checkpoint in bfloat16, a file a layer; returns the bytes of its largest tensor."""
    directory.mkdir()
    fields = {"model_type": LLAMA.name, "architectures": [LLAMA.architecture], "torch_dtype": "bfloat16", **LLAMA.write(config)}
    (directory / "config.json").write_text(json.dumps(fields))
    shapes = {rule.name: rule.foreign_shape() for rule in expand(config, LLAMA.table, LLAMA.name)}
    weight_map = {name: f"model-{name.split('.')[2] if '.layers.' in name else 'rest'}.safetensors" for name in shapes}
    generator = np.random.default_rng(0)
    for file in sorted(set(weight_map.values())):
        names = [name for name in shapes if weight_map[name] == file]
        writer = SafetensorsWriter(directory / file, {name: (shapes[name], "bfloat16") for name in names})
        if file.split("-")[1].split(".")[0] in map(str, range(random_layers)):
            for name in names:
                noise = generator.standard_normal(shapes[name], np.float32)
                writer.write(name, noise.view(np.uint16)[..., 1::2].copy())  # the upper half of a float32 is a bfloat16
        writer.close(durable=False)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return max(int(np.prod(shape)) for shape in shapes.values()) * 2


def bound(largest: int) -> int:
    """Bytes that a conversion may occupy when the source's largest tensor has `largest`."""
    return 2 * largest + GIB


def measure(name: str, source: Path, destination: Path, largest: int) -> int:
    """Converts in a child process, prints what it took, and returns its peak resident memory in bytes, imports included."""
    began = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(source), str(destination)], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.monotonic() - began
    parameters, peak = (int(number) for number in child.stdout.split())
    print(
        f"{name}: {parameters / 1e9:.2f}B parameters, peak {peak / GIB:.2f} GiB resident, bound {bound(largest) / GIB:.2f} GiB "
        f"(largest tensor {largest / GIB:.2f} GiB), {seconds:.0f} s: {'inside' if peak <= bound(largest) else 'OUTSIDE'}"
    )
    return peak


if __name__ == "__main__":
    sys.exit(main())
