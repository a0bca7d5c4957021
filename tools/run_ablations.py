"""Runs ablations one after the other, keeps each result in experiments/ablations/results, and writes the page of claims anew.

    .venv/bin/python tools/run_ablations.py M1 G5                 # some
    nohup .venv/bin/python tools/run_ablations.py &               # all that have no result yet; an interrupted run goes on

Each is `lmx run experiments/ablations/NAME.py --workdir WORKDIR/NAME` in a process of its own. One that stops with an error is told
at the end and does not keep the others from running.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lmx.eval.claim_page import RESULT  # noqa: E402
from lmx.pipeline.experiment import load_module  # noqa: E402
from lmx.stages import Measure  # noqa: E402

FOLDER = ROOT / "experiments" / "ablations"


def main() -> int:
    """Runs what was asked for; 1 if something failed."""
    options = _options()
    files = find_files()
    if unknown := sorted(set(options.ids).difference(files)):
        raise SystemExit(f"no experiment of {FOLDER} tests {', '.join(unknown)}; there are {', '.join(files)}")
    wanted = options.ids or [claim for claim in files if not (FOLDER / "results" / f"{claim}.json").exists()]
    failed = [file for file in tqdm(dict.fromkeys(files[claim] for claim in wanted)) if not run(file, options.workdir)]
    subprocess.run([sys.executable, "-m", "lmx", "report", str(FOLDER.relative_to(ROOT))], cwd=ROOT, check=True)
    for file in failed:
        print(f"{file.relative_to(ROOT)} stopped with an error; run it alone to see it", file=sys.stderr)
    return bool(failed)


def find_files() -> dict[str, Path]:
    """The experiment of each claim that has one."""
    found: dict[str, Path] = {}
    for file in sorted(FOLDER.glob("*.py")):
        module = load_module(file)
        if hasattr(module, "get_config"):
            found |= {stage.claim.id: file for stage in module.get_config().stages.values() if isinstance(stage, Measure)}
    return found


def run(file: Path, workdir: Path) -> bool:
    """Runs one experiment file and keeps its results; whether it ended."""
    folder = workdir / file.stem
    command = [sys.executable, "-m", "lmx", "run", str(file.relative_to(ROOT)), "--workdir", str(folder)]
    if subprocess.run(command, cwd=ROOT).returncode:
        return False
    for name, stage in load_module(file).get_config().stages.items():
        if isinstance(stage, Measure):
            kept = FOLDER / "results" / f"{stage.claim.id}.json"
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name / RESULT, kept)
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", metavar="ID", nargs="*", help="claims (default: those without a result)")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "ablations", help="folder of the runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
