"""The verb of a curation file: curate."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmx.cli.verb import add_verb


def add(verbs: Any) -> None:
    """Adds the verb to the parser's subparsers."""
    summary = "read pages, filter and dedup them on Apache Beam, and write a corpus with its data card"
    parser = add_verb(
        verbs,
        "curate",
        _curate,
        summary,
        usage="%(prog)s FILE [--output DIR] [--set PATH=VALUE ...] [-- BEAM_OPTION ...]",
        epilog="Options after -- are Beam's: --direct_num_workers=4 --direct_running_mode=multi_processing runs several processes "
        "here; --runner=DataflowRunner (FlinkRunner, SparkRunner) with its own options runs the same graph there.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="Python file that defines get_config() -> Curation")
    parser.add_argument("--output", metavar="DIR", help="new folder for the corpus (default: runs/NAME, by the curation's name)")
    parser.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[], help="override a value of the config; repeatable"
    )


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of lmx, and those after `--` that `curate` hands to Beam."""
    own = list(arguments)
    if own[:1] != ["curate"] or "--" not in own:
        return own, []
    place = own.index("--")
    return own[:place], own[place + 1 :]


def _curate(options: argparse.Namespace) -> None:
    from lmx.core import logging as console
    from lmx.core import overrides
    from lmx.pipeline import experiment

    logging.disable(logging.WARNING)  # while it is imported Beam warns of every optional package that is absent
    try:
        from apache_beam.internal import cloudpickle

        from lmx.curation import run
        from lmx.curation.config import Curation
    except ModuleNotFoundError as error:
        raise ValueError(f"`lmx curate` needs the extra `curation`: pip install 'lmx[curation]' ({error})") from error
    finally:
        logging.disable(logging.NOTSET)

    console.setup()
    module = experiment.load_module(options.file)
    cloudpickle.register_pickle_by_value(module)  # functions and steps of the file travel to workers that have no such file
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{options.file} defines no get_config(); a curation file has `def get_config() -> Curation`")
    config = module.get_config()
    if not isinstance(config, Curation):
        raise ValueError(
            f"get_config() of {options.file} gives a {type(config).__name__}, expected an lmx.curation.config.Curation"
        )
    config = overrides.override_all(config, [overrides.parse_assignment(text) for text in options.set])
    # Local worker processes are started anew and must find the modules that the file imports.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    run.curate(config, options.output or os.path.join("runs", config.name), options.options_of_beam)
