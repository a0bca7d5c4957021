"""SentencePiece: trained from an iterator of texts, lossless, deterministic.

Reference: Kudo and Richardson (2018), arXiv:1808.06226; byte fallback and split digits as in Llama, Touvron et al. (2023),
arXiv:2302.13971, section 2.1.
"""

import dataclasses
import functools
import hashlib
import heapq
import io
import json
import random
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import sentencepiece

# SentencePiece writes a space as this character, so as a character of the text it is encoded by its three bytes.
SPACE_SYMBOL = "\u2581"
SURROGATE = re.compile("[\ud800-\udfff]")
ASCII = string.ascii_letters + string.digits + string.punctuation
MIN_VOCAB_SIZE = 4 + 256 + 1 + len(ASCII)
MODEL_FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceTraining:
    """What the vocabulary is learned from, and how.

    Attributes:
      vocab_size: pieces in all, 4 specials and 256 bytes included.
      algorithm: SentencePiece's name of it, "bpe" (fast) or "unigram".
      max_bytes: a uniform sample of about this many bytes of the texts is used; all of them when they are fewer.
      chunk_bytes: texts are cut at line ends into sentences of at most this many bytes.
      character_coverage: share of the characters that get a piece of their own, ASCII has anyway; the rest is spelled in bytes.
      seed: of the sample.
    """

    vocab_size: int
    algorithm: str = "bpe"
    max_bytes: int = 8_000_000
    chunk_bytes: int = 4_000
    character_coverage: float = 0.9995
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ("bpe", "unigram"):
            raise ValueError(f"algorithm={self.algorithm!r} is not one of 'bpe', 'unigram'")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size={self.vocab_size} must be at least {MIN_VOCAB_SIZE}: 4 specials, 256 bytes, the space and "
                f"{len(ASCII)} ASCII characters"
            )
        if self.chunk_bytes < 4:
            raise ValueError(f"chunk_bytes={self.chunk_bytes} must be at least 4, the longest character of UTF-8")


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """A trained model; `decode(encode(text)) == text` for every text that UTF-8 can hold.

    Attributes:
      model: the serialised SentencePiece model, with identity normalisation and byte fallback.
    """

    kind: ClassVar[str] = "sentencepiece"
    model: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def _space_symbol_ids(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.vocab_size()

    @functools.cached_property
    def bos_id(self) -> int | None:
        """Id of `<s>`, None in a model without one."""
        index = self._processor.bos_id()
        return None if index < 0 else index

    @functools.cached_property
    def eos_id(self) -> int:
        """Id of `</s>`."""
        return self._processor.eos_id()

    @functools.cached_property
    def pad_id(self) -> int:
        """Id of `<pad>`; in a model without one, EOS, which is masked where it pads."""
        index = self._processor.pad_id()
        return self.eos_id if index < 0 else index

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the model."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials.

        Raises:
          ValueError: the text holds a lone surrogate, which is no character.
        """
        try:
            first, *others = text.split(SPACE_SYMBOL)
            ids = self._processor.encode(first)
            for part in others:
                ids.extend((*self._space_symbol_ids, *self._processor.encode(part)))
            return ids
        except (RuntimeError, UnicodeEncodeError) as error:  # which of them depends on SentencePiece's version
            if surrogate := SURROGATE.search(text):
                place = f"{surrogate[0]!r} at character {surrogate.start()}"
                raise ValueError(f"text has the lone surrogate {place}; UTF-8 cannot hold it") from error
            raise

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped."""
        return self._processor.decode([int(index) for index in ids])

    def id_to_piece(self, index: int) -> str:
        """The piece as SentencePiece writes it, a space being U+2581."""
        return self._processor.id_to_piece(int(index))

    def save(self, directory: Path) -> None:
        """Writes the model, then `tokenizer.json` with its digest."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self.model)
        (directory / "tokenizer.json").write_text(json.dumps({"kind": self.kind, "sha256": self.fingerprint}) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "SentencePieceTokenizer":
        """Reads what `save` wrote.

        Raises:
          ValueError: the model is missing or not the one that was saved.
        """
        path = directory / MODEL_FILE
        if not path.is_file():
            raise ValueError(f"{directory} has no {MODEL_FILE}, so its SentencePiece tokenizer is incomplete")
        tokenizer = cls(path.read_bytes())
        expected = json.loads((directory / "tokenizer.json").read_text()).get("sha256", "")
        if tokenizer.fingerprint != expected:
            raise ValueError(
                f"{path} is damaged: {len(tokenizer.model)} bytes with digest {tokenizer.fingerprint[:12]}, not {expected[:12]}"
            )
        return tokenizer


def train(config: SentencePieceTraining, texts: Iterable[str]) -> SentencePieceTokenizer:
    """Learns a vocabulary from `texts`; the same texts in the same order give the same bytes.

    Raises:
      ValueError: there is no text, or too little for `vocab_size` pieces.
    """
    sentences = sample(chunks(texts, config.chunk_bytes), config.max_bytes, config.seed)
    if not sentences:
        raise ValueError("a tokenizer cannot be trained on no text; the texts given were empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            required_chars=ASCII,
            max_sentence_length=config.chunk_bytes + 1,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            num_threads=2,  # a constant: unigram's sums depend on how the sentences are dealt out
            minloglevel=2,
        )
    except (RuntimeError, UnicodeError) as error:
        size = sum(len(sentence) for sentence in sentences)
        raise ValueError(
            f"SentencePiece cannot learn vocab_size={config.vocab_size} pieces from {size} characters of text: {error}"
        ) from error
    return SentencePieceTokenizer(model.getvalue())


def chunks(texts: Iterable[str], chunk_bytes: int) -> Iterator[str]:
    """Cuts texts into pieces of at most `chunk_bytes`, at line ends where lines are short enough."""
    for text in texts:
        pieces: list[str] = []
        size = 0
        for line in text.splitlines(keepends=True):
            for piece in _bounded(line, chunk_bytes):
                length = len(piece.encode("utf-8", "replace"))
                if size + length > chunk_bytes:
                    yield "".join(pieces)
                    pieces, size = [], 0
                pieces.append(piece)
                size += length
        if pieces:
            yield "".join(pieces)


def _bounded(line: str, chunk_bytes: int) -> Iterator[str]:
    """A line whole if its bytes fit for sure, else in pieces of a quarter as many characters (4 bytes each at most)."""
    step = len(line) if 4 * len(line) <= chunk_bytes or len(line.encode("utf-8", "replace")) <= chunk_bytes else chunk_bytes // 4
    yield from (line[start : start + step] for start in range(0, len(line), step))


def sample(sentences: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """A uniform sample of at most `max_bytes`, in the order of the sentences, in one pass and bounded memory."""
    generator = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap by random key: the largest key leaves first
    size = 0
    for number, sentence in enumerate(sentences):
        heapq.heappush(kept, (-generator.random(), number, sentence))
        size += len(sentence.encode("utf-8", "replace"))
        while size > max_bytes and len(kept) > 1:
            size -= len(heapq.heappop(kept)[2].encode("utf-8", "replace"))
    return [sentence for _, _, sentence in sorted(kept, key=lambda entry: entry[1])]
