"""Files of tiktoken ranks: Llama 3's `tokenizer.model` and Qwen's `.tiktoken`."""

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import tiktoken

from lmx.tokenizer.kind_file import KIND_FILE, checked_fields, checked_file, checked_specials, write_kind
from lmx.tokenizer.pickling import PickledByFields
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.text import check_ids, check_text, flat, special_pattern, split_specials

RANKS_FILE = "ranks.tiktoken"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = f"{_CONTRACTIONS}|{_WORDS_AND_REST % '{1,3}'}"
QWEN_PATTERN = f"{_CONTRACTIONS}|{_WORDS_AND_REST % ''}"
_LLAMA3_TEXT_LIMIT, _LLAMA3_RUN_LIMIT = 400_000, 25_000
_QWEN_SPACE_LIMIT = 400_000
LLAMA3_NAMES = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id"}
LLAMA3_NAMES |= {8: "eom_id", 9: "eot_id", 10: "python_tag"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What a file of ranks does not say.

    Attributes:
      pattern: regular expression of the words that merges stay inside.
      specials: names of the special tokens behind the ranks, in the order of their ids.
      nfc: texts are brought into Unicode's normal form C first.
      cuts: cuts a text into the pieces that tiktoken gets one by one, where it cannot take any length.
      bos: name of the special that starts a document, None for none.
      eos: name of the special that ends one.
      pad: name of the special that fills rows.
    """

    pattern: str
    specials: tuple[str, ...]
    nfc: bool
    cuts: Callable[[str], Iterator[str]]
    bos: str | None
    eos: str
    pad: str


def _llama3_specials() -> tuple[str, ...]:
    names: list[str] = []
    reserved = iter(range(256))
    for index in range(256):
        names.append(f"<|{LLAMA3_NAMES.get(index) or f'reserved_special_token_{next(reserved)}'}|>")
    return tuple(names)


def _llama3_cuts(text: str) -> Iterator[str]:
    """As Meta's own code cuts: texts at 400 000 characters, runs with or without whitespace at 25 000."""
    for start in range(0, len(text), _LLAMA3_TEXT_LIMIT):
        part = text[start : start + _LLAMA3_TEXT_LIMIT]
        yield from _cut_runs(part, r"\s+|\S+", _LLAMA3_RUN_LIMIT)


def _qwen_cuts(text: str) -> Iterator[str]:
    """Uncut, as in Qwen's own code, but for runs of whitespace so long that tiktoken gives up on them."""
    yield from _cut_runs(text, r"\s+", _QWEN_SPACE_LIMIT)


def _cut_runs(text: str, pattern: str, limit: int) -> Iterator[str]:
    """Cuts inside every run that `pattern` matches, after each `limit` characters of it."""
    if len(text) <= limit:
        yield text
        return
    start = 0
    for run in re.finditer(pattern, text):
        for cut in range(run.start() + limit, run.end(), limit):
            yield text[start:cut]
            start = cut
    yield text[start:]


STYLES = {
    "llama3": Style(
        pattern=LLAMA3_PATTERN,
        specials=_llama3_specials(),
        nfc=False,
        cuts=_llama3_cuts,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
    ),
    "qwen": Style(
        pattern=QWEN_PATTERN,
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
        nfc=True,
        cuts=_qwen_cuts,
        bos=None,
        eos="<|endoftext|>",
        pad="<|endoftext|>",
    ),
}


def parse_ranks(data: bytes) -> dict[bytes, int]:
    """The tokens of a file of ranks: one line each, base64 and rank.

    Raises:
      ValueError: a line has another form, a token or rank stands there twice, a rank or a byte is missing.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            index = int(rank) if rank.isdigit() and len(rank) < 10 else -1
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} of the ranks is {line[:60]!r}, not base64 and a rank") from error
        if not token or index < 0:
            raise ValueError(f"line {number} of the ranks is {line[:60]!r}, not base64 and a rank")
        if token in ranks:
            raise ValueError(f"line {number} of the ranks repeats the token {token!r}")
        ranks[token] = index
    if len(set(ranks.values())) != len(ranks) or (ranks and max(ranks.values()) != len(ranks) - 1):
        raise ValueError(f"the {len(ranks)} ranks are not 0..{len(ranks) - 1}, each once; the file is damaged")
    if missing := [byte for byte in range(256) if bytes((byte,)) not in ranks]:
        raise ValueError(f"the ranks lack {len(missing)} of the 256 bytes, the first {missing[0]:#04x}; the file is cut short")
    return ranks


@dataclasses.dataclass(frozen=True)
class TiktokenTokenizer(PickledByFields):
    """A file of ranks, run by the `tiktoken` package with the pattern and specials of one of `STYLES`.

    `decode(encode(text)) == text` for Llama 3, and for Qwen the normal form C of the text.

    Attributes:
      ranks: the bytes of the file.
      style: which of `STYLES`.
      specials: text and id of the special tokens; None = the style's, behind the ranks.
      roles: ids of BOS, EOS and padding; None = the style's.
    """

    kind: ClassVar[str] = "tiktoken"
    streaming_style: ClassVar[str | None] = "bytes"
    ranks: bytes = dataclasses.field(repr=False)
    style: str
    specials: tuple[tuple[str, int], ...] | None = dataclasses.field(default=None, repr=False)
    roles: Roles | None = None

    @functools.cached_property
    def parsed(self) -> dict[bytes, int]:
        """Rank of each token."""
        return parse_ranks(self.ranks)

    @functools.cached_property
    def special_by_text(self) -> dict[str, int]:
        """Id of each special token."""
        if self.specials is not None:
            return dict(self.specials)
        return {text: len(self.parsed) + index for index, text in enumerate(STYLES[self.style].specials)}

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return special_pattern(self.special_by_text)

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        # The library sees no specials: text could not become one even by mistake.
        return tiktoken.Encoding(
            f"lmx-{self.fingerprint}", pat_str=STYLES[self.style].pattern, mergeable_ranks=self.parsed, special_tokens={}
        )

    @functools.cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        return {rank: token for token, rank in self.parsed.items()}

    @functools.cached_property
    def vocab_size(self) -> int:
        """Largest id and one."""
        return max(len(self.parsed), *(index + 1 for index in self.special_by_text.values()))

    @functools.cached_property
    def _roles(self) -> Roles:
        if self.roles is not None:
            return self.roles
        style, ids = STYLES[self.style], self.special_by_text
        return Roles(bos_id=None if style.bos is None else ids[style.bos], eos_id=ids[style.eos], pad_id=ids[style.pad])

    @property
    def bos_id(self) -> int | None:
        """Id that starts a document, None where the vocabulary has none (Qwen)."""
        return self._roles.bos_id

    @property
    def eos_id(self) -> int:
        """Id that ends a document or a response."""
        return self._roles.eos_id

    @property
    def pad_id(self) -> int:
        """Id that fills rows."""
        return self._roles.pad_id

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The special tokens behind the ranks."""
        return frozenset(self.special_by_text.values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the ranks and all the fields."""
        fields = json.dumps(self._fields(), sort_keys=True)
        return hashlib.sha256(hashlib.sha256(self.ranks).digest() + fields.encode()).hexdigest()

    def _fields(self) -> dict[str, Any]:
        return {
            "style": self.style,
            "specials": [list(pair) for pair in self.special_by_text.items()],
            "roles": dataclasses.asdict(self._roles),
        }

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without specials.

        Raises:
          ValueError: the text holds a lone surrogate, which is no character.
        """
        check_text(text)
        style = STYLES[self.style]
        text = unicodedata.normalize("NFC", text) if style.nfc else text
        return [index for part in style.cuts(text) for index in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several cores."""
        with ThreadPoolExecutor() as pool:  # tiktoken lets go of the interpreter while it works
            return list(pool.map(self.encode, texts))

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of `text` in which the spelling of a special becomes that special."""
        check_text(text)
        text = unicodedata.normalize("NFC", text) if STYLES[self.style].nfc else text
        return flat(self.encode_parts(split_specials(text, self.special_by_text, self._special_pattern)))

    def encode_parts(self, parts: Sequence[str | int]) -> list[list[int]]:
        """Ids of each of several texts and special ids in a row."""
        return [self.encode(part) if isinstance(part, str) else [part] for part in parts]

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; specials are dropped."""
        check_ids(ids, self.vocab_size)
        return b"".join(self._bytes_by_id.get(index, b"") for index in ids).decode("utf-8", "replace")

    def id_to_piece(self, index: int) -> str:
        """The token's text, bytes that are no character as U+FFFD."""
        index = int(index)
        if index in self._bytes_by_id:
            return self._bytes_by_id[index].decode("utf-8", "replace")
        return self._special_names.get(index, f"<unused {index}>")

    @functools.cached_property
    def _special_names(self) -> dict[int, str]:
        return {index: text for text, index in self.special_by_text.items()}

    def token_bytes(self, index: int) -> bytes | None:
        """The token's bytes; None for specials."""
        return self._bytes_by_id.get(int(index))

    def save(self, directory: Path) -> None:
        """Writes the ranks as they came, then `kind.json` with their digest."""
        write_kind(directory, self.kind, {RANKS_FILE: self.ranks}, self._fields())

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "TiktokenTokenizer":
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is missing or not the one that was saved, or a field is damaged.
        """
        ranks = checked_file(directory, RANKS_FILE, description)
        fields = checked_fields(directory, description, {"style": str, "specials": list})
        roles = Roles.from_json(description.get("roles"), f"{directory / KIND_FILE}")
        tokenizer = cls(ranks, fields["style"], checked_specials(directory, fields["specials"]), roles)
        tokenizer.check()
        return tokenizer

    def check(self) -> None:
        """Refuses a file that cannot work.

        Raises:
          ValueError: it is damaged, the style is unknown, or specials or roles are outside the vocabulary or on a rank.
        """
        if self.style not in STYLES:
            raise ValueError(f"tiktoken style {self.style!r} is not one of {', '.join(STYLES)}")
        for text, index in self.special_by_text.items():
            if not text or index < len(self.parsed):
                raise ValueError(f"special {text!r} has id {index}, which must lie behind the {len(self.parsed)} ranks")
        if len(self.special_ids) != len(self.special_by_text):
            raise ValueError(f"{len(self.special_by_text)} specials have only {len(self.special_ids)} different ids")
        self._roles.check(self.vocab_size)
