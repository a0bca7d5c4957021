"""The verb that brings checkpoints in and takes them out: convert."""

import argparse
import sys
from typing import Any

from lmx.cli.verb import add_verb


def add(verbs: Any) -> None:
    """Adds the verb to the parser's subparsers."""
    summary = "convert a checkpoint: Hugging Face, GGUF, Meta's Llama layout and lmx's own"
    parser = add_verb(verbs, "convert", _convert, summary)
    parser.add_argument("source", metavar="SRC", help="an lmx artifact, a Hugging Face or Meta directory, or a .gguf file")
    parser.add_argument("destination", metavar="DST", help="what to write; must not exist")
    parser.add_argument(
        "--to", choices=("hf", "lmx", "gguf"), help="kind of DST (default: gguf for *.gguf, else lmx, and hf when SRC is lmx)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="numbers to write (default: as in SRC, float32 for quantised ones; q8_0 for GGUF only)",
    )


def _convert(options: argparse.Namespace) -> None:
    from lmx.convert import conversion
    from lmx.core import logging

    logging.setup()
    show = sys.stderr.isatty()
    report = conversion.convert(options.source, options.destination, to=options.to, dtype=options.dtype, show_progress=show)
    print("\n".join(report.lines()))
