"""Hyper-parameters of a GGUF file by key, each checked, and none left over that lmx does not know."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmx.convert.source import ConversionError

_LIMIT = 1 << 31


class Keys:
    """The metadata below `{architecture}.`, and which of it was read."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, path: Path) -> None:
        """Nothing is read yet."""
        self.architecture, self.path = architecture, path
        self._metadata = metadata
        self._seen: set[str] = set()

    def error(self, name: str, what: str) -> ConversionError:
        """An error about a key."""
        return ConversionError(f"{self.path}: {self.architecture}.{name} {what}")

    def get(self, name: str) -> Any:
        """A value, None where the file has none. A list of one value a layer counts as the value when all layers agree."""
        key = f"{self.architecture}.{name}"
        self._seen.add(key)
        value = self._metadata.get(key)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise self.error(name, "differs from layer to layer, which no family that lmx reads does")
            value = value[0]
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to below 2^31; `default` None = the key must be there."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LIMIT:
            raise self.error(name, "is missing" if value is None else f"is {value!r}, not a whole number from 1 to {_LIMIT - 1}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number above 0. A float32 becomes the shortest decimal that it stands for: 1e-06, not 9.999999974752427e-07."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(name, "is missing" if value is None else f"is {value!r}, not a positive number")
        single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, f"is {value!r}, not a string")
        return default if value is None else value

    def neutral(self, name: str, *values: Any) -> None:
        """A mechanism that lmx lacks in this family: the key must be absent or have one of the values that turn it off.

        Raises:
          ConversionError: it is turned on.
        """
        value = self.get(name)
        if value is not None and value not in values:
            raise self.error(name, f"is {value!r}; lmx does not implement that for this architecture")

    def ignore(self, *names: str) -> None:
        """Keys that say nothing about the mathematics."""
        self._seen.update(f"{self.architecture}.{name}" for name in names)

    def finish(self) -> None:
        """Checks that every key of the architecture was read.

        Raises:
          ConversionError: one was not; it may change the mathematics.
        """
        left = [key for key in self._metadata if key.startswith(f"{self.architecture}.") and key not in self._seen]
        if left:
            raise ConversionError(f"{self.path}: lmx does not know the key {left[0]}, which may change what the model computes")
