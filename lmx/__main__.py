"""`python -m lmx`."""

import sys

from lmx import cli

if __name__ == "__main__":
    sys.exit(cli.main())
