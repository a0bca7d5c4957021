"""The tokenizer in a GGUF file's metadata, read into a tokenizer of lmx."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmx.tokenizer.chat import Chat
from lmx.tokenizer.conversion import byte_level, split_step
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.sentencepiece import SPACE_SYMBOL, SentencePieceTokenizer
from lmx.tokenizer.sentencepiece_model import Algorithm, Model, Piece, PieceType, serialize
from lmx.tokenizer.text import LOOKS_SPECIAL
from lmx.tokenizer.tiktoken import LLAMA3_PATTERN, QWEN_PATTERN

PREFIX = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The words of each `tokenizer.ggml.pre`, each pattern cutting what the one before left; names as llama.cpp has them.
WORDS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (LLAMA3_PATTERN,),
    "qwen2": (QWEN_PATTERN,),
    "gpt-2": (GPT2_PATTERN,),
    "smollm": (r"\p{N}", GPT2_PATTERN),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_SYNONYMS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "gpt2": "gpt-2"}
_BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")


def from_metadata(metadata: Mapping[str, Any]) -> tuple[Tokenizer, Chat | None]:
    """The tokenizer and chat format that a GGUF file describes.

    `tokenizer.ggml.model` "llama" is a SentencePiece BPE (Llama 2, Gemma), "gpt2" a byte-level BPE (Llama 3, Qwen 2) whose words
    `tokenizer.ggml.pre` names.

    Args:
      metadata: values by GGUF key; arrays as lists.

    Returns:
      The tokenizer, and None instead of a chat format when the file has no template.

    Raises:
      ValueError: a key is missing, has another form or contradicts another one, or names something that lmx does not know.
    """
    kind = metadata.get(f"{PREFIX}model")
    if kind == "llama":
        tokenizer: Tokenizer = _sentencepiece(metadata)
    elif kind == "gpt2":
        tokenizer = _byte_level(metadata)
    else:
        raise ValueError(f"{PREFIX}model is {kind!r}; lmx reads 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)")
    template = metadata.get(TEMPLATE_KEY)
    if template is None:
        return tokenizer, None
    if not isinstance(template, str):
        raise ValueError(f"{TEMPLATE_KEY} is a {type(template).__name__}, not a text")
    stops = [_index(metadata, name, tokenizer.vocab_size) for name in ("eos", "eot", "eom")]
    return tokenizer, Chat(template, tuple(dict.fromkeys(index for index in stops if index is not None)))


def _list(metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
    """An array of the metadata with all its elements of one type."""
    value = metadata.get(f"{PREFIX}{name}")
    if value is None or isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError(f"{PREFIX}{name} is {'missing' if value is None else f'a {type(value).__name__}'}, not an array")
    for position, item in enumerate(value):
        if not isinstance(item, kind) or isinstance(item, bool):
            raise ValueError(f"{PREFIX}{name}[{position}] is {str(item)[:60]!r}, of type {type(item).__name__}")
    if length is not None and len(value) != length:
        raise ValueError(f"{PREFIX}{name} has {len(value)} entries and {PREFIX}tokens {length}")
    return list(value)


def _index(metadata: Mapping[str, Any], name: str, size: int) -> int | None:
    """The id under a name as `bos_token_id`, None if there is none."""
    key = f"{PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size):
        raise ValueError(f"{key} is {str(value)[:60]!r}; it must be an id below the {size} tokens")
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"{PREFIX}{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"{PREFIX}{name} is {str(value)[:60]!r}, not true or false")
    return value


def _roles(metadata: Mapping[str, Any], size: int) -> Roles:
    eos, pad = _index(metadata, "eos", size), _index(metadata, "padding", size)
    if eos is None:
        raise ValueError(f"{PREFIX}eos_token_id is missing: nothing says which token ends a text")
    return Roles(bos_id=_index(metadata, "bos", size), eos_id=eos, pad_id=eos if pad is None else pad)


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[PieceType]]:
    texts = _list(metadata, "tokens", str)
    if not texts:
        raise ValueError(f"{PREFIX}tokens is empty")
    known = {int(kind) for kind in PieceType}
    types = _list(metadata, "token_type", int, len(texts))
    for position, kind in enumerate(types):
        if kind not in known:
            raise ValueError(f"{PREFIX}token_type[{position}] is {kind}; known are {min(known)}..{max(known)}")
        if not texts[position]:
            raise ValueError(f"{PREFIX}tokens[{position}] is empty")
    return texts, [PieceType(kind) for kind in types]


def _unique(texts: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    for position, text in enumerate(texts):
        if (first := seen.setdefault(text, position)) != position:
            raise ValueError(f"{PREFIX}tokens has {text[:60]!r} twice, as {first} and {position}")
    return texts


def _sentencepiece(metadata: Mapping[str, Any]) -> SentencePieceTokenizer:
    texts, types = _tokens(metadata)
    texts = _unique([text.replace(" ", SPACE_SYMBOL) for text in texts])
    scores = [float(score) for score in _list(metadata, "scores", (int, float), len(texts))]
    for position, (text, score, kind) in enumerate(zip(texts, scores, types, strict=True)):
        if not math.isfinite(score):
            raise ValueError(f"{PREFIX}scores[{position}] is {score}, not a finite number")
        if kind == PieceType.BYTE and not _BYTE_TEXT.fullmatch(text):
            raise ValueError(f"{PREFIX}tokens[{position}] is a byte and {text[:60]!r}, not <0x00>..<0xFF>")
    roles, unknown = _roles(metadata, len(texts)), _index(metadata, "unknown", len(texts))
    if unknown is None:
        if PieceType.UNKNOWN not in types:
            raise ValueError(f"{PREFIX}token_type has no unknown token, which SentencePiece needs")
        unknown = types.index(PieceType.UNKNOWN)
    types = [PieceType.CONTROL if kind == PieceType.UNKNOWN else kind for kind in types]
    types[unknown] = PieceType.UNKNOWN
    model = Model(
        pieces=tuple(Piece(text, score, kind) for text, score, kind in zip(texts, scores, types, strict=True)),
        algorithm=Algorithm.BPE,
        byte_fallback=PieceType.BYTE in types,
        unk_id=unknown,
        bos_id=-1 if roles.bos_id is None else roles.bos_id,
        eos_id=roles.eos_id,
        add_dummy_prefix=_flag(metadata, "add_space_prefix", True),
        remove_extra_whitespaces=_flag(metadata, "remove_extra_whitespaces", False),
        charsmap=_charsmap(metadata),
    )
    marked = {PieceType.USER_DEFINED, PieceType.NORMAL}
    specials = [(text, index) for index, text in enumerate(texts) if types[index] in marked and LOOKS_SPECIAL.fullmatch(text)]
    tokenizer = SentencePieceTokenizer(serialize(model), False, tuple(specials), roles)
    tokenizer.check()
    tokenizer.encode("")
    return tokenizer


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    if f"{PREFIX}precompiled_charsmap" not in metadata:
        return b""
    values = _list(metadata, "precompiled_charsmap", int)
    if not all(-128 <= value < 256 for value in values):
        raise ValueError(f"{PREFIX}precompiled_charsmap has numbers that are no bytes")
    return bytes(value % 256 for value in values)


def _byte_level(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer:
    texts, types = _tokens(metadata)
    vocabulary = {text: index for index, text in enumerate(_unique(texts))}
    merges: list[tuple[str, str]] = []
    for position, merge in enumerate(_list(metadata, "merges", str)):
        left, separator, right = merge.partition(" ")
        if not separator or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ValueError(f"{PREFIX}merges[{position}] is {merge[:60]!r}, not two tokens that make a third")
        merges.append((left, right))
    pre = metadata.get(f"{PREFIX}pre", "default")
    name = _SYNONYMS.get(str(pre), str(pre))
    if name not in WORDS:
        raise ValueError(f"{PREFIX}pre is {str(pre)[:60]!r}; lmx knows {', '.join(sorted({*WORDS, *_SYNONYMS}))}")
    special = {PieceType.CONTROL, PieceType.UNKNOWN}
    added = [
        (text, index, types[index] in special)
        for index, text in enumerate(texts)
        if types[index] in special or types[index] == PieceType.USER_DEFINED
    ]
    definition = byte_level(
        vocabulary,
        merges,
        steps=[split_step(pattern) for pattern in WORDS[name]],
        added=added,
        nfc=name == "qwen2",
        ignore_merges=name == "llama-bpe",
    )
    tokenizer = HuggingFaceTokenizer(json.dumps(definition, ensure_ascii=False).encode(), _roles(metadata, len(texts)))
    tokenizer.check()
    return tokenizer
