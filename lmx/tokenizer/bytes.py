"""The byte tokenizer: one id for each byte of the UTF-8 text, nothing to train."""

import codecs
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lmx.tokenizer.kind_file import write_kind
from lmx.tokenizer.text import flat, special_pattern, split_specials

SPECIALS = ("<pad>", "<s>", "</s>")
_SPECIAL_IDS = {text: index for index, text in enumerate(SPECIALS)}
_PATTERN = special_pattern(SPECIALS)
_SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
KEEP_SURROGATES = "lmx.keep_surrogates"


def _keep_surrogates(error: UnicodeError) -> tuple[str, int]:
    """Decodes the three bytes of a lone surrogate, and replaces what is no UTF-8 by U+FFFD."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    data = error.object[error.start : error.start + 3]
    if _SURROGATE_BYTES.fullmatch(data):
        return data.decode("utf-8", "surrogatepass"), error.start + 3
    return "\ufffd", error.end


codecs.register_error(KEEP_SURROGATES, _keep_surrogates)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Byte b has id 3 + b; ids 0, 1, 2 are padding, BOS and EOS.

    Lone surrogates, which UTF-8 cannot hold, are encoded as Python's `surrogatepass` does, so every `str` round-trips.
    """

    kind: ClassVar[str] = "byte"
    vocab_size: ClassVar[int] = len(SPECIALS) + 256
    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2
    streaming_style: ClassVar[str | None] = "bytes"
    decode_errors: ClassVar[str] = KEEP_SURROGATES
    special_ids: ClassVar[frozenset[int]] = frozenset(range(len(SPECIALS)))
    fingerprint: ClassVar[str] = hashlib.sha256(b"lmx byte tokenizer, 3 specials").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of the text's bytes."""
        return [len(SPECIALS) + byte for byte in text.encode("utf-8", "surrogatepass")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text's bytes."""
        return [self.encode(text) for text in texts]

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of the text's bytes, `<pad>`, `<s>` and `</s>` in it being the specials."""
        return flat(self.encode_parts(split_specials(text, _SPECIAL_IDS, _PATTERN)))

    def encode_parts(self, parts: Sequence[str | int]) -> list[list[int]]:
        """Ids of each of several texts and special ids in a row."""
        return [self.encode(part) if isinstance(part, str) else [part] for part in parts]

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes among `ids`."""
        data = bytes(index - len(SPECIALS) for index in ids if index >= len(SPECIALS))
        return data.decode("utf-8", KEEP_SURROGATES)

    def id_to_piece(self, index: int) -> str:
        """`<s>` for a special, `a` for a printable ASCII byte, `<0x0A>` for any other."""
        if index < len(SPECIALS):
            return SPECIALS[index]
        byte = index - len(SPECIALS)
        return chr(byte) if 0x20 < byte < 0x7F else f"<0x{byte:02X}>"

    def token_bytes(self, index: int) -> bytes | None:
        """The byte; None for a special."""
        return bytes((index - len(SPECIALS),)) if len(SPECIALS) <= index < self.vocab_size else None

    def save(self, directory: Path) -> None:
        """Writes `kind.json`."""
        write_kind(directory, self.kind, {}, {})

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "ByteTokenizer":
        """The byte tokenizer; there is nothing more to read."""
        return cls()
