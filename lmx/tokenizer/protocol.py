"""What every tokenizer offers."""

from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """A reversible map between text and ids.

    Ids of special tokens come from these fields alone: no text, whatever it contains, encodes to one of them.
    """

    def __hash__(self) -> int:
        """Agrees with equality: equal tokenizers encode alike."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included; every id is below it."""

    @property
    def bos_id(self) -> int | None:
        """Id that starts a document, None where the vocabulary has none."""

    @property
    def eos_id(self) -> int:
        """Id that ends a document or a response."""

    @property
    def pad_id(self) -> int:
        """Id that fills rows; always masked."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that encoding depends on."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped, bytes that are not UTF-8 become U+FFFD."""

    def id_to_piece(self, index: int) -> str:
        """Readable name of one id, for people."""

    def save(self, directory: Path) -> None:
        """Writes the tokenizer into `directory`, from where `lmx.tokenizer.load` reads it."""


def start_id(tokenizer: Tokenizer) -> int:
    """Id that stands before the first token of a document: BOS, or EOS where the vocabulary has no BOS (Qwen 2)."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
