"""What every tokenizer offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """A map between text and ids, reversible where the vocabulary allows it.

    Ids of special tokens come from these fields, or from `encode_with_specials` and `encode_parts` on request: whatever text is
    given to `encode`, it becomes none of `special_ids`.
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
    def special_ids(self) -> frozenset[int]:
        """Ids that no text becomes and that decoding drops."""

    @property
    def streaming_style(self) -> str | None:
        """How text grows with the ids, for `TextStream`: by "bytes", by "pieces", or None when only whole texts decode."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that encoding depends on."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials.

        Raises:
          ValueError: the text holds a lone surrogate and the vocabulary cannot.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several cores where the kind can.

        Raises:
          ValueError: as `encode`, of any of the texts.
        """

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of `text` in which the spelling of a special token becomes that token: never for text of unknown origin.

        Nothing is added in front or behind.
        """

    def encode_parts(self, parts: Sequence[str | int]) -> list[list[int]]:
        """Ids of each of several ordinary texts and special ids in a row.

        A text becomes what it would be there in one longer text, as far as the vocabulary's prefix spaces go, and no special. No
        token reaches over the border between two texts.
        """

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped, bytes that are not UTF-8 become U+FFFD."""

    def id_to_piece(self, index: int) -> str:
        """Readable name of one id, for people; a special's name is what `encode_with_specials` looks for."""

    def token_bytes(self, index: int) -> bytes | None:
        """Raw bytes that an id stands for inside a text; None for specials, and where the kind does not know them."""

    def save(self, directory: Path) -> None:
        """Writes the tokenizer into `directory`, from where `lmx.tokenizer.load` reads it."""


def start_id(tokenizer: Tokenizer) -> int:
    """Id that stands before the first token of a document: BOS, or EOS where the vocabulary has no BOS (Qwen 2)."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
