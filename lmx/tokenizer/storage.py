"""Reading a saved tokenizer: `tokenizer.json` says of which kind it is."""

import json
from pathlib import Path

from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer

KINDS = {kind.kind: kind for kind in (ByteTokenizer, SentencePieceTokenizer)}


def load(directory: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `directory`.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: a file there is damaged, or the kind is unknown.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer in {directory}: {path.name} is missing")
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged: expected {{"kind": ...}} ({error})') from error
    if kind not in KINDS:
        raise ValueError(f"{path} names the tokenizer kind {kind!r}; this version knows {', '.join(sorted(KINDS))}")
    return KINDS[kind].load(Path(directory))
