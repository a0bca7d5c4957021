"""SentencePiece: models of any origin, and training from an iterator of texts, lossless and deterministic.

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from lmx.tokenizer import sentencepiece_model
from lmx.tokenizer.kind_file import KIND_FILE, checked_fields, checked_file, checked_specials, write_kind
from lmx.tokenizer.pickling import PickledByFields
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.sentencepiece_model import PieceType
from lmx.tokenizer.text import check_ids, check_text, flat, runs, special_pattern, split_specials

# SentencePiece writes a space as this character, so as a character of the text it is encoded by its three bytes.
SPACE_SYMBOL = "\u2581"
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
class SentencePieceTokenizer(PickledByFields):
    """A SentencePiece model of any origin: ids and text are the library's own, but no text becomes a special.

    With the models that `train` makes, `decode(encode(text)) == text` for every text that UTF-8 can hold.

    Attributes:
      model: the bytes of the model file.
      lossless: spell U+2581 in a text by its bytes; SentencePiece itself reads it as a space. For models with byte fallback.
      specials: text and id of the specials beside the model's control pieces: user-defined pieces (Gemma's turn tokens), and
        tokens that were added behind the model's vocabulary.
      roles: ids of BOS, EOS and padding; None = as the model says.
    """

    kind: ClassVar[str] = "sentencepiece"
    streaming_style: ClassVar[str | None] = "pieces"
    model: bytes = dataclasses.field(repr=False)
    lossless: bool = True
    specials: tuple[tuple[str, int], ...] = ()
    roles: Roles | None = None

    @functools.cached_property
    def parsed(self) -> sentencepiece_model.Model:
        """What stands in the model file."""
        return sentencepiece_model.parse(self.model)

    @functools.cached_property
    def _special_by_text(self) -> dict[str, int]:
        control = {piece.text: index for index, piece in enumerate(self.parsed.pieces) if piece.type == PieceType.CONTROL}
        return control | dict(self.specials)

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return special_pattern(self._special_by_text)

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        own = frozenset(index for _, index in self.specials if index < len(self.parsed.pieces))
        return _processor(sentencepiece_model.rewritten(self.model, control=own) if own else self.model)

    @functools.cached_property
    def _prefix_free(self) -> sentencepiece.SentencePieceProcessor:
        if not self.parsed.add_dummy_prefix:
            return self._processor
        return _processor(sentencepiece_model.rewritten(self.model, control=self.special_ids, prefix_free=True))

    @functools.cached_property
    def _space_symbol_ids(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of pieces and added tokens."""
        return max([self._processor.vocab_size(), *(index + 1 for _, index in self.specials)])

    @functools.cached_property
    def bos_id(self) -> int | None:
        """Id of `<s>`, None in a model without one."""
        if self.roles is not None:
            return self.roles.bos_id
        index = self._processor.bos_id()
        return None if index < 0 else index

    @functools.cached_property
    def eos_id(self) -> int:
        """Id of `</s>`."""
        return self._processor.eos_id() if self.roles is None else self.roles.eos_id

    @functools.cached_property
    def pad_id(self) -> int:
        """Id of `<pad>`; in a model without one, EOS, which is masked where it pads."""
        if self.roles is not None:
            return self.roles.pad_id
        index = self._processor.pad_id()
        return self.eos_id if index < 0 else index

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Control pieces, and the specials given beside them."""
        return frozenset(self._special_by_text.values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the model, and of what else encoding depends on where that is not the default."""
        digest = hashlib.sha256(self.model)
        if fields := self._fields():
            digest.update(json.dumps(fields, sort_keys=True).encode())
        return digest.hexdigest()

    def _fields(self) -> dict[str, Any]:
        """The fields beside the model that are not at their defaults, as JSON holds them."""
        fields: dict[str, Any] = {} if self.lossless else {"lossless": False}
        if self.specials:
            fields["specials"] = [list(pair) for pair in self.specials]
        if self.roles is not None:
            fields["roles"] = dataclasses.asdict(self.roles)
        return fields

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials.

        Raises:
          ValueError: the text holds a lone surrogate, which is no character.
        """
        return self._encode(text, self._processor)

    def _encode(self, text: str, processor: sentencepiece.SentencePieceProcessor) -> list[int]:
        check_text(text)
        if not self.lossless:
            return processor.encode(text)
        first, *others = text.split(SPACE_SYMBOL)
        ids = processor.encode(first)
        for part in others:
            ids.extend((*self._space_symbol_ids, *processor.encode(part)))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; the library uses all cores."""
        for text in texts:
            check_text(text)
        if not self.lossless:
            return self._processor.encode(list(texts))
        whole = [text for text in texts if SPACE_SYMBOL not in text]
        found = iter(self._processor.encode(whole))
        return [self.encode(text) if SPACE_SYMBOL in text else next(found) for text in texts]

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of `text` in which the spelling of a special becomes that special."""
        check_text(text)
        return flat(self.encode_parts(split_specials(text, self._special_by_text, self._special_pattern)))

    def encode_parts(self, parts: Sequence[str | int]) -> list[list[int]]:
        """Ids of each of several texts and special ids in a row.

        A model's dummy prefix stands at the start and behind every special, as in Hugging Face's files of Llama 2, but not behind
        another text: there it would be a space that nobody wrote.
        """
        ids: list[list[int]] = []
        for part, before in runs(parts):
            if isinstance(part, str):
                ids.append(self._encode(part, self._prefix_free if before == "text" else self._processor))
            else:
                ids.append([part])
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped."""
        kept = [int(index) for index in ids if index not in self.special_ids]
        check_ids(kept, self._processor.vocab_size())
        return self._processor.decode(kept)

    def id_to_piece(self, index: int) -> str:
        """The piece as SentencePiece writes it, a space being U+2581."""
        index = int(index)
        if index < len(self.parsed.pieces):
            return self.parsed.pieces[index].text
        return next((text for text, special in self.specials if special == index), f"<unused {index}>")

    def token_bytes(self, index: int) -> bytes | None:
        """Bytes of a piece in the middle of a text, where a leading U+2581 is a space."""
        if index in self.special_ids or not 0 <= index < len(self.parsed.pieces):
            return None
        piece = self.parsed.pieces[index]
        if piece.type == PieceType.BYTE:
            return bytes((int(piece.text[3:5], 16),))
        if piece.type == PieceType.UNKNOWN:
            return self.parsed.unknown_surface.encode()
        return piece.text.replace(SPACE_SYMBOL, " ").encode()

    def save(self, directory: Path) -> None:
        """Writes the model, then `kind.json` with its digest."""
        write_kind(directory, self.kind, {MODEL_FILE: self.model}, self._fields())

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "SentencePieceTokenizer":
        """Reads what `save` wrote.

        Raises:
          ValueError: the model is missing or not the one that was saved, or a field is damaged.
        """
        model = checked_file(directory, MODEL_FILE, description)
        given = {"lossless": True, "specials": [], "roles": None} | description
        fields = checked_fields(directory, given, {"lossless": bool, "specials": list})
        roles = given["roles"] if given["roles"] is None else Roles.from_json(given["roles"], f"{directory / KIND_FILE}")
        tokenizer = cls(model, fields["lossless"], checked_specials(directory, fields["specials"]), roles)
        tokenizer.check()
        return tokenizer

    def check(self) -> None:
        """Refuses a model that cannot work.

        Raises:
          ValueError: the file is damaged, the roles are outside the vocabulary, or there is no end-of-text id.
        """
        for text, index in self.specials:
            if index < len(self.parsed.pieces) and self.parsed.pieces[index].text != text:
                raise ValueError(f"special {text!r} has id {index}, which is {self.parsed.pieces[index].text!r} in the model")
        Roles(bos_id=self.bos_id, eos_id=self.eos_id, pad_id=self.pad_id).check(self.vocab_size)


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"SentencePiece cannot load the model ({len(model)} bytes): {error}") from error


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
