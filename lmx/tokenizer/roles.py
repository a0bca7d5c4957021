"""Which ids begin, end and fill a document."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roles:
    """The ids of a tokenizer's special roles.

    Attributes:
      bos_id: starts a document, None where the vocabulary has no such token.
      eos_id: ends a document or a response.
      pad_id: fills rows.
    """

    bos_id: int | None
    eos_id: int
    pad_id: int

    def check(self, vocab_size: int) -> None:
        """Refuses ids outside a vocabulary.

        Raises:
          ValueError: one of them is.
        """
        for name, index in dataclasses.asdict(self).items():
            if index is not None and not 0 <= index < vocab_size:
                raise ValueError(f"{name}={index} is outside the tokenizer's vocabulary of {vocab_size}")

    @classmethod
    def from_json(cls, value: Any, source: str) -> "Roles":
        """Reads what `dataclasses.asdict` gave.

        Raises:
          ValueError: something else stands there; the message names `source`.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"{source} is damaged: roles is {value!r}, not an object with {', '.join(names)}")
        for name in names:
            if type(value[name]) is not int and not (name == "bos_id" and value[name] is None):
                raise ValueError(f"{source} is damaged: {name} is {value[name]!r}, not an id")
        return cls(**value)
