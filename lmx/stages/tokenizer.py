"""The stage that makes a tokenizer."""

import dataclasses
from typing import ClassVar, Protocol

from lmx.core.logging import logger
from lmx.data.text import PackedText
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.stage import Inputs, StageContext, StageResult, Upstream
from lmx.tokenizer import sentencepiece
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTraining


class Vocabulary(Protocol):
    """How a tokenizer is made from text."""

    @property
    def size(self) -> int | None:
        """Pieces it will have at most, None when that isn't known before."""

    def make(self, data: PackedText) -> Tokenizer:
        """The tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """A vocabulary learned from the text."""

    training: SentencePieceTraining

    @property
    def size(self) -> int | None:
        """As `Vocabulary.size`."""
        return self.training.vocab_size

    def make(self, data: PackedText) -> Tokenizer:
        """As `Vocabulary.make`."""
        return sentencepiece.train(self.training, data.texts("train"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes:
    """The 256 bytes and the specials; nothing to learn."""

    @property
    def size(self) -> int | None:
        """As `Vocabulary.size`."""
        return ByteTokenizer().vocab_size

    def make(self, data: PackedText) -> Tokenizer:
        """As `Vocabulary.make`."""
        del data
        return ByteTokenizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Makes a tokenizer from the training split of a text.

    Attributes:
      data: the text.
      vocabulary: `SentencePiece(...)` or `Bytes()`.
    """

    produces: ClassVar[str] = "tokenizer"
    data: PackedText
    vocabulary: Vocabulary

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        del upstream
        return self.vocabulary.size

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; it takes seconds, so an interrupted run starts over."""
        del inputs
        tokenizer = self.vocabulary.make(self.data)
        artifacts.write_tokenizer(context.workdir, tokenizer)
        logger.info("stage %s: %d pieces", context.name, tokenizer.vocab_size)
        return StageResult(metrics={"vocab_size": tokenizer.vocab_size})
