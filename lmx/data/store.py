"""Documents as ids, tokenized once: flat arrays in memory, or on disk and mapped into memory."""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmx.data.sources import Rows, Source, field_of
from lmx.tokenizer.protocol import Tokenizer

FORMAT = 1
# Documents are tokenized in blocks of about this size: enough for all cores, and memory stays bounded when the store is on disk.
BLOCK_CHARACTERS = 1 << 21


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """All documents of one split of one source.

    Attributes:
      tokens: [N] uint16 or uint32, the documents' ids end to end, no specials.
      offsets: [D + 1] int64; document d is `tokens[offsets[d]:offsets[d + 1]]`.
      text_bytes: UTF-8 bytes of all the texts.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    text_bytes: int

    @property
    def num_documents(self) -> int:
        """D; documents without text are not among them."""
        return len(self.offsets) - 1


def texts(source: Source, field: str, split: str) -> Iterator[str]:
    """The texts of a split in order, without empty ones."""
    rows = source.load(split)
    for index in range(len(rows)):
        if text := field_of(rows[index], field, source, index):
            yield text


def open_store(source: Source, field: str, split: str, tokenizer: Tokenizer, directory: Path | None = None) -> TokenStore:
    """Tokenizes a split, or finds it tokenized already.

    Args:
      source: where the rows come from.
      field: which field of a row is the document.
      split: "train" or "heldout".
      tokenizer: hashable; equal tokenizers share stores.
      directory: where token arrays are kept for other runs, None = in memory only.
    """
    return _open_store(source, source.fingerprint(), field, split, tokenizer, directory)


@functools.lru_cache(maxsize=16)
def _open_store(
    source: Source, fingerprint: str, field: str, split: str, tokenizer: Tokenizer, directory: Path | None
) -> TokenStore:
    rows = source.load(split)
    if directory is None:
        blocks, lengths, text_bytes = [], [], 0
        for block in _blocks(rows, source, field, tokenizer):
            blocks.append(block.tokens)
            lengths.append(np.diff(block.offsets))
            text_bytes += block.text_bytes
        return (
            _checked(TokenStore(np.concatenate(blocks), _offsets(lengths), text_bytes), source, split)
            if blocks
            else _none(source, split)
        )
    key = json.dumps([FORMAT, repr(source), fingerprint, field, split, tokenizer.fingerprint])
    target = directory / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not target.is_dir():
        _write(target, _blocks(rows, source, field, tokenizer), _dtype(tokenizer))
    return _checked(_read(target), source, split)


def _none(source: Source, split: str) -> TokenStore:
    raise ValueError(f"{source} has no text in the split {split!r}")


def _checked(store: TokenStore, source: Source, split: str) -> TokenStore:
    return store if store.num_documents else _none(source, split)


def _dtype(tokenizer: Tokenizer) -> Any:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _offsets(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])


def _blocks(rows: Rows, source: Source, field: str, tokenizer: Tokenizer) -> Iterator[TokenStore]:
    """Consecutive documents, tokenized, some at a time."""
    documents: list[str] = []
    size = 0
    for index in range(len(rows)):
        if text := field_of(rows[index], field, source, index):
            documents.append(text)
            size += len(text)
        if size >= BLOCK_CHARACTERS:
            yield _block(documents, tokenizer)
            documents, size = [], 0
    if documents:
        yield _block(documents, tokenizer)


def _block(documents: list[str], tokenizer: Tokenizer) -> TokenStore:
    ids = [np.array(ids, _dtype(tokenizer)) for ids in tokenizer.encode_batch(documents)]
    text_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in documents)
    return TokenStore(np.concatenate(ids), _offsets([np.array([len(document) for document in ids])]), text_bytes)


def _write(target: Path, blocks: Iterator[TokenStore], dtype: Any) -> None:
    """Writes a store beside its place and moves it there whole; of two processes at it, one wins and both results are the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target.parent))
    try:
        lengths, text_bytes = [np.zeros(0, np.int64)], 0
        with open(temporary / "tokens.bin", "wb") as file:
            for block in blocks:
                file.write(block.tokens.tobytes())
                lengths.append(np.diff(block.offsets))
                text_bytes += block.text_bytes
        np.save(temporary / "offsets.npy", _offsets(lengths))
        (temporary / "store.json").write_text(json.dumps({"dtype": np.dtype(dtype).name, "text_bytes": text_bytes}))
        if not target.is_dir():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(target: Path) -> TokenStore:
    try:
        header = json.loads((target / "store.json").read_text())
        offsets = np.load(target / "offsets.npy")
        size = (target / "tokens.bin").stat().st_size // np.dtype(header["dtype"]).itemsize
        if size != offsets[-1]:
            raise ValueError(f"tokens.bin holds {size} ids, expected {offsets[-1]}")
        tokens = np.memmap(target / "tokens.bin", header["dtype"], "r") if size else np.zeros(0, header["dtype"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the tokenized documents in {target} are damaged: {error}; remove the directory to have them made anew"
        ) from error
    return TokenStore(tokens, offsets, header["text_bytes"])
