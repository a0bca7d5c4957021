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
    experiments = find_experiments()
    file_of = {claim: file for file, stages in experiments.items() for claim in stages.values()}
    if unknown := sorted(set(options.ids).difference(file_of)):
        raise SystemExit(f"no experiment of {FOLDER} tests {', '.join(unknown)}; there are {', '.join(file_of)}")
    wanted = options.ids or [claim for claim in file_of if not kept(claim).exists()]
    files = dict.fromkeys(file_of[claim] for claim in wanted)
    failed = [file for file in tqdm(files) if not run(file, experiments[file], options.workdir)]
    subprocess.run([sys.executable, "-m", "lmx", "report", str(FOLDER.relative_to(ROOT))], cwd=ROOT, check=True)
    for file in failed:
        print(f"{file.relative_to(ROOT)} stopped with an error; run it alone to see it", file=sys.stderr)
    return bool(failed)


def find_experiments() -> dict[Path, dict[str, str]]:
    """The experiments that test claims: file -> stage -> claim."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        module = load_module(file)
        if hasattr(module, "get_config"):
            stages = module.get_config().stages
            found[file] = {name: stage.claim.id for name, stage in stages.items() if isinstance(stage, Measure)}
    return found


def kept(claim: str) -> Path:
    """Where the result of a claim is kept."""
    return FOLDER / "results" / f"{claim}.json"


def run(file: Path, claims: dict[str, str], workdir: Path) -> bool:
    """Runs one experiment file and keeps the results of its stages; whether it ended."""
    folder = workdir / file.stem
    command = [sys.executable, "-m", "lmx", "run", str(file.relative_to(ROOT)), "--workdir", str(folder)]
    if subprocess.run(command, cwd=ROOT).returncode:
        return False
    for stage, claim in claims.items():
        kept(claim).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / stage / RESULT, kept(claim))
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", metavar="ID", nargs="*", help="claims (default: those without a result)")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "ablations", help="folder of the runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
