"""Failures that a person can act on: the message is one clear sentence, and the command line prints it without a traceback."""


class RunError(Exception):
    """A run cannot go on; the message says what happened, where, and what to do.

    Attributes:
      exit_code: what the process should return to the shell.
    """

    exit_code = 1


class DiskFullError(RunError):
    """Something could not be written because the disk (or quota) is full."""


class LockedError(RunError):
    """Another process is at work in the same directory."""
