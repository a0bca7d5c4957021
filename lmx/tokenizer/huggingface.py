"""Hugging Face's `tokenizer.json`, run by the `tokenizers` package."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import tokenizers

from lmx.tokenizer.definition import (
    Definition,
    byte_of_character,
    decoding_style,
    guarded,
    parse,
    without_first_prefix,
    without_prefix,
)
from lmx.tokenizer.kind_file import KIND_FILE, checked_file, write_kind
from lmx.tokenizer.pickling import PickledByFields
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.text import check_ids, check_text, runs

DEFINITION_FILE = "tokenizer.json"
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(PickledByFields):
    """A `tokenizer.json`: ids are those of the `tokenizers` package without its post-processor, and no text becomes a special.

    Added tokens that the file does not mark as special (Qwen's `<tool_call>`, Gemma's runs of newlines) stay ordinary text, which
    the package finds before anything else. The unknown token stays what the model makes of characters that it lacks. A text that
    the model itself would turn into another special (a Unigram vocabulary with `</s>` among its pieces) is encoded as if the
    vocabulary did not have it. The file's regular expressions are run as they are: one made to be slow is slow.

    Attributes:
      definition: the bytes of the file.
      roles: ids of BOS, EOS and padding, which the file does not tell.
    """

    kind: ClassVar[str] = "huggingface"
    definition: bytes = dataclasses.field(repr=False)
    roles: Roles

    @functools.cached_property
    def parsed(self) -> Definition:
        """The file as JSON."""
        return parse(self.definition)

    @functools.cached_property
    def _special_by_text(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in self.parsed["added_tokens"] if token["special"]}

    @functools.cached_property
    def _full(self) -> tokenizers.Tokenizer:
        return _build(self.definition.decode())

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return _without_specials(self.definition.decode())

    @functools.cached_property
    def _after_special(self) -> tokenizers.Tokenizer:
        return self._variant(without_first_prefix(self.parsed), self._plain)

    @functools.cached_property
    def _after_text(self) -> tokenizers.Tokenizer:
        return self._variant(without_prefix(self.parsed), self._plain)

    @functools.cached_property
    def _guards(self) -> dict[int, tokenizers.Tokenizer]:
        """The copy of each backend whose model does not know the specials' texts, made when one is needed."""
        return {}

    @functools.cached_property
    def _forbidden_ids(self) -> frozenset[int]:
        """The specials without the unknown token, which a vocabulary without bytes makes of what it lacks."""
        model = self.parsed["model"]
        unknown = model.get("unk_id") if model["type"] == "Unigram" else self._special_by_text.get(model.get("unk_token"))
        return frozenset(index for index in self.special_ids if index != unknown)

    def _variant(self, definition: Definition, otherwise: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        return otherwise if definition == self.parsed else _without_specials(json.dumps(definition))

    @functools.cached_property
    def _stripping(self) -> dict[int, tuple[bool, bool]]:
        """The specials that swallow the whitespace on their left or right."""
        added = self.parsed["added_tokens"]
        return {token["id"]: (token["lstrip"], token["rstrip"]) for token in added if token["lstrip"] or token["rstrip"]}

    @functools.cached_property
    def vocab_size(self) -> int:
        """Largest id and one."""
        return max(self.ids_by_text.values()) + 1

    @property
    def bos_id(self) -> int | None:
        """Id that starts a document, None where the vocabulary has none."""
        return self.roles.bos_id

    @property
    def eos_id(self) -> int:
        """Id that ends a document or a response."""
        return self.roles.eos_id

    @property
    def pad_id(self) -> int:
        """Id that fills rows."""
        return self.roles.pad_id

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Added tokens that the file marks as special."""
        return frozenset(self._special_by_text.values())

    @functools.cached_property
    def ids_by_text(self) -> dict[str, int]:
        """Id of each token, added ones included."""
        return self._plain.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the file and the roles."""
        roles = json.dumps(dataclasses.asdict(self.roles), sort_keys=True)
        return hashlib.sha256(hashlib.sha256(self.definition).digest() + roles.encode()).hexdigest()

    @functools.cached_property
    def streaming_style(self) -> str | None:
        """How ids become text: "bytes", "pieces", or None for a decoder that only sees whole texts."""
        return decoding_style(self.parsed)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials.

        Raises:
          ValueError: the text holds a lone surrogate, or spells a special in a way that the model cannot avoid.
        """
        return self._encode(text, self._plain)

    def _encode(self, text: str, backend: tokenizers.Tokenizer) -> list[int]:
        check_text(text)
        ids = _ids(backend, text)
        if self._forbidden_ids.isdisjoint(ids):
            return ids
        if id(backend) not in self._guards:
            self._guards[id(backend)] = _without_specials(json.dumps(guarded(json.loads(backend.to_str()))))
        ids = _ids(self._guards[id(backend)], text)
        if not self._forbidden_ids.isdisjoint(ids):
            wrong = self.id_to_piece(next(index for index in ids if index in self._forbidden_ids))
            raise ValueError(f"the tokenizer makes the special token {wrong!r} of ordinary text; remove that text")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; the package uses all cores, unless TOKENIZERS_PARALLELISM=false.

        Raises:
          ValueError: as `encode`, of any of the texts.
        """
        for text in texts:
            check_text(text)
        try:
            found = [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
        except BaseException as error:
            if not _of_the_package(error):
                raise
            return [self.encode(text) for text in texts]  # says which text it is
        return [ids if self._forbidden_ids.isdisjoint(ids) else self.encode(text) for text, ids in zip(texts, found, strict=True)]

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids as the `tokenizers` package finds them, added specials in the text included, without the post-processor."""
        check_text(text)
        return _ids(self._full, text)

    def encode_parts(self, parts: Sequence[str | int]) -> list[list[int]]:
        """Ids of each of several texts and special ids in a row.

        Behind a special a text gets the prefix space that the file gives there; behind another text it gets none.
        """
        backends = {"start": self._plain, "special": self._after_special, "text": self._after_text}
        parts = list(parts)
        ids: list[list[int]] = []
        for index, (part, before) in enumerate(runs(parts)):
            if isinstance(part, int):
                ids.append([part])
                continue
            if self._stripping:
                part = self._stripped(
                    part, parts[index - 1] if index else None, parts[index + 1] if index + 1 < len(parts) else None
                )
            ids.append(self._encode(part, backends[before]))
        return ids

    def _stripped(self, text: str, left: str | int | None, right: str | int | None) -> str:
        """A text without the whitespace that the specials beside it swallow."""
        if isinstance(left, int) and self._stripping.get(left, (False, False))[1]:
            text = text.lstrip()
        if isinstance(right, int) and self._stripping.get(right, (False, False))[0]:
            text = text.rstrip()
        return text

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped."""
        ids = [int(index) for index in ids]
        check_ids(ids, self.vocab_size)
        return self._plain.decode(ids, skip_special_tokens=True)

    def id_to_piece(self, index: int) -> str:
        """The token as the file writes it."""
        piece = self._plain.id_to_token(int(index))
        return f"<unused {index}>" if piece is None else piece

    def token_bytes(self, index: int) -> bytes | None:
        """Bytes of a token in the middle of a text; None for specials and where the decoder needs the whole text."""
        piece = None if index in self.special_ids else self._plain.id_to_token(int(index))
        if piece is None or self.streaming_style is None:
            return None
        if self.streaming_style == "bytes":
            data = [byte_of_character().get(character) for character in piece]
            return piece.encode() if None in data else bytes(byte for byte in data if byte is not None)
        match = BYTE_PIECE.fullmatch(piece)
        return bytes((int(match[1], 16),)) if match else piece.replace("\u2581", " ").encode()

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` as it came, then `kind.json` with its digest."""
        write_kind(directory, self.kind, {DEFINITION_FILE: self.definition}, {"roles": dataclasses.asdict(self.roles)})

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "HuggingFaceTokenizer":
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is missing or not the one that was saved, or a field is damaged.
        """
        definition = checked_file(directory, DEFINITION_FILE, description)
        tokenizer = cls(definition, Roles.from_json(description.get("roles"), f"{directory / KIND_FILE}"))
        tokenizer.check()
        return tokenizer

    def check(self) -> None:
        """Refuses a file that cannot work.

        Raises:
          ValueError: it is damaged, or the roles are outside the vocabulary.
        """
        for token in self.parsed["added_tokens"]:
            if (given := self._plain.token_to_id(token["content"])) != token["id"]:
                raise ValueError(
                    f"tokenizer.json numbers {token['content']!r} as {token['id']}, and the tokenizers package as {given}"
                )
        self.roles.check(self.vocab_size)


def _of_the_package(error: BaseException) -> bool:
    """Whether the `tokenizers` package gave up: it raises bare `Exception`s, and its panics are not even those."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _build(definition: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(definition)
    except BaseException as error:
        if not _of_the_package(error):
            raise
        raise ValueError(f"tokenizer.json is not understood by tokenizers {tokenizers.__version__}: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        return backend.encode(text, add_special_tokens=False).ids
    except BaseException as error:
        if not _of_the_package(error):
            raise
        raise ValueError(f"tokenizer.json cannot encode the text {text[:60]!r}: {error}") from error


def _without_specials(definition: str) -> tokenizers.Tokenizer:
    backend = _build(definition)
    backend.encode_special_tokens = True
    return backend
