"""How tokenizers travel to other processes."""

import dataclasses
from typing import Any


class PickledByFields:
    """A frozen dataclass that is pickled as its fields, without what it has derived from them and cached."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
