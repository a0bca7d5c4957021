"""What stands in the place of a tokenizer where a checkpoint brought none."""

from typing import Any, NoReturn


class AbsentTokenizer:
    """No tokenizer: the model that it belongs to works on ids, and whoever asks this for anything is told so in one sentence."""

    def __init__(self, where: str) -> None:
        """`where` is the folder that holds none."""
        self._where = where

    def __repr__(self) -> str:
        return f"AbsentTokenizer({self._where!r})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(
            f"{self._where} holds no tokenizer, so its model works on token ids only; put the tokenizer's files beside the "
            "checkpoint that it was converted from, and convert that again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return AbsentTokenizer, (self._where,)
