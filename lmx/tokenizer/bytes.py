"""The byte tokenizer: one id for each byte of the UTF-8 text, nothing to train."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import ClassVar

SPECIALS = ("<pad>", "<s>", "</s>")


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
    fingerprint: ClassVar[str] = hashlib.sha256(b"lmx byte tokenizer, 3 specials").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of the text's bytes."""
        return [len(SPECIALS) + byte for byte in text.encode("utf-8", "surrogatepass")]

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes among `ids`."""
        data = bytes(index - len(SPECIALS) for index in ids if index >= len(SPECIALS))
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def id_to_piece(self, index: int) -> str:
        """`<s>` for a special, `a` for a printable ASCII byte, `<0x0A>` for any other."""
        if index < len(SPECIALS):
            return SPECIALS[index]
        byte = index - len(SPECIALS)
        return chr(byte) if 0x20 < byte < 0x7F else f"<0x{byte:02X}>"

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(json.dumps({"kind": self.kind}) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "ByteTokenizer":
        """The byte tokenizer; there is nothing more to read."""
        return cls()
