"""Reading a saved tokenizer: `kind.json` says of which kind it is."""

from pathlib import Path

from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.kind_file import KIND_FILE, read_kind
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer
from lmx.tokenizer.tiktoken import TiktokenTokenizer

KINDS: dict[str, type[ByteTokenizer | HuggingFaceTokenizer | SentencePieceTokenizer | TiktokenTokenizer]] = {
    kind.kind: kind for kind in (ByteTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, TiktokenTokenizer)
}


def load(directory: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `directory`.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: a file there is damaged, or the kind is unknown.
    """
    path = Path(directory)
    description = read_kind(path)
    kind = description["kind"]
    if kind not in KINDS:
        raise ValueError(f"{path / KIND_FILE} names the tokenizer kind {kind!r}; this version knows {', '.join(sorted(KINDS))}")
    return KINDS[kind].load(path, description)
