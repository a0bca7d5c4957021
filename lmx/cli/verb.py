"""What every verb of the command line has."""

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(
    verbs: Any, name: str, function: Callable[[argparse.Namespace], None], summary: str, **options: Any
) -> argparse.ArgumentParser:
    """Adds a verb to the parser's subparsers.

    Args:
      verbs: the subparsers.
      name: what is typed.
      function: called with the parsed options.
      summary: what it does, without capital letter or full stop.
      **options: of `add_parser`; the description is the summary unless given.
    """
    options = {"description": f"{summary[0].upper()}{summary[1:]}.", **options}
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, **options)
    parser.set_defaults(verb=function)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error (also: LMX_DEBUG=1)")
    return parser
