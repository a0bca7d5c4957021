"""The verbs of experiment files: run, show, data; and report, of a folder of them."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from lmx.cli.verb import add_verb


def add(verbs: Any) -> None:
    """Adds the verbs to the parser's subparsers."""
    _add_run(_verb(verbs, "run", _run, "run an experiment, or go on with it"))
    _verb(verbs, "show", _show, "print the stage graph, parameters, FLOPs, tokens and the resolved config; touches no device")
    _add_data(_verb(verbs, "data", _data, "print packed batches of a stage, decoded, with boundaries and loss masks"))
    _add_report(verbs)


def _run(options: argparse.Namespace) -> None:
    from lmx.core import logging, overrides
    from lmx.pipeline import experiment, graph, runner
    from lmx.train import compile_cache

    logging.setup()
    compile_cache.enable_compile_cache()
    assignments = [overrides.parse_assignment(text) for text in options.set]
    variants = experiment.load_variants(options.file, assignments, seeds=_seeds(options.seeds), sweep=options.sweep)
    for variant in variants:
        graph.resolve(variant.experiment)  # the last of a sweep must not fail after hours of the first
    for variant in variants:
        workdir = os.path.join(options.workdir, variant.suffix) if variant.suffix else options.workdir
        if variant.suffix:
            logging.logger.info("variant %s", variant.suffix)
        runner.run_experiment(variant.experiment, workdir, only=options.only, from_=options.from_, profile=options.profile)


def _show(options: argparse.Namespace) -> None:
    from lmx.core import overrides
    from lmx.pipeline import experiment, show
    from lmx.stages import table

    assignments = [overrides.parse_assignment(text) for text in options.set]
    loaded = experiment.load_experiment(options.file, assignments)
    print(show.describe(loaded, lambda graph, shown: table.stage_table(graph, shown.figures)))


def _data(options: argparse.Namespace) -> None:
    from lmx.core import logging, overrides
    from lmx.pipeline import experiment, preview

    logging.setup()
    loaded = experiment.load_experiment(options.file, [overrides.parse_assignment(text) for text in options.set])
    command = ["lmx", "run", str(options.file), "--workdir", options.workdir or "DIR"]
    command += [word for text in options.set for word in ("--set", text)]
    lines = preview.preview(
        loaded,
        options.stage,
        options.workdir,
        batches=options.batches,
        rows=options.rows,
        characters=options.characters,
        command=shlex.join(command),
    )
    for line in lines:
        print(line)


def _report(options: argparse.Namespace) -> None:
    from lmx.stages import claim_report

    results = options.results or options.folder / "results"
    output = options.output or options.folder / "RESULTS.md"
    print(claim_report.write_page(options.folder, results, output))


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers with commas between them, such as 0,1,2; found {text!r}") from None


def _verb(verbs, name, function, summary) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser = add_verb(verbs, name, function, summary)
    parser.add_argument("file", metavar="FILE", type=Path, help="experiment file")
    parser.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[], help="override a value of the config; repeatable"
    )
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="folder of the run; one folder a stage below it")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone; what it reads must be finished")
    parser.add_argument(
        "--from", metavar="STAGE", dest="from_", help="redo this stage and all behind it; the old results are moved aside"
    )
    parser.add_argument("--seeds", metavar="N,N,...", help="run once a seed, in the subfolders seedN")
    parser.add_argument("--sweep", action="store_true", help="run the variants of the file's sweep(), a subfolder each")
    parser.add_argument("--profile", action="store_true", help="write a profiler trace of each training stage")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", nargs="?", help="stage to look at (default: the first that has batches)")
    parser.add_argument("--workdir", metavar="DIR", help="folder of a run whose tokenizer, datasets and models are used")
    parser.add_argument("--batches", metavar="N", type=int, default=1, help="batches to show (default: %(default)s)")
    parser.add_argument("--rows", metavar="N", type=int, default=2, help="rows of a batch to show (default: %(default)s)")
    parser.add_argument(
        "--characters", metavar="N", type=int, default=600, help="characters of a document to show (default: %(default)s)"
    )


def _add_report(verbs: Any) -> None:
    summary = "write the page of claims from a folder of experiments and their results"
    parser = add_verb(verbs, "report", _report, summary)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with a claims.py that defines CLAIMS")
    parser.add_argument("--results", metavar="DIR", type=Path, help="folder of the result files (default: FOLDER/results)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write the page (default: FOLDER/RESULTS.md)")
