"""Fingerprints: one short text that is equal exactly when a config's values and its inputs are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lmx.core import serialize


def fingerprint(config: Any, inputs: Mapping[str, str] | None = None) -> str:
    """SHA-256, in hex, over the values of a config and the fingerprints of its inputs.

    A function counts by its qualified name, a partial by name and arguments, a float by its shortest exact form; the order of
    a dict's keys doesn't count. The library's version is left out: it is recorded beside the fingerprint, not in it.

    Args:
      config: dataclasses, containers, scalars, paths, functions and partials.
      inputs: input name -> fingerprint.

    Raises:
      ValueError: for a lambda, a closure or another value without a lasting identity, with its path.
    """
    tree = {"config": serialize.canonical(config), "inputs": dict(inputs or {})}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
