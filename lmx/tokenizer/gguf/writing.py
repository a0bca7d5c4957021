"""A tokenizer of lmx as the metadata of a GGUF file."""

import re
from collections.abc import Sequence
from typing import Any

from lmx.tokenizer.chat import Chat
from lmx.tokenizer.conversion import to_huggingface
from lmx.tokenizer.definition import Definition, merge_pair, vocabulary_of
from lmx.tokenizer.gguf.reading import GPT2_PATTERN, PREFIX, TEMPLATE_KEY, WORDS
from lmx.tokenizer.huggingface import BYTE_PIECE, HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SPACE_SYMBOL, SentencePieceTokenizer
from lmx.tokenizer.sentencepiece_model import Algorithm, PieceType

_GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_END_OF_MESSAGE = "<|eom_id|>"
_UNREACHED_SCORE = -1e9


def to_metadata(tokenizer: Tokenizer, chat: Chat | None) -> dict[str, Any]:
    """Values by GGUF key that `from_metadata` reads back to the same ids.

    The chat template loses its `{% generation %}` tags, which other readers of GGUF do not know; of the ids that end a turn, GGUF
    has room for three.

    Raises:
      ValueError: GGUF cannot express the tokenizer.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        values = _from_sentencepiece(tokenizer)
    else:
        definition = to_huggingface(tokenizer)
        values = _from_byte_level(definition) if definition.streaming_style == "bytes" else _from_pieces(definition)
    values |= {"eos_token_id": tokenizer.eos_id, "padding_token_id": tokenizer.pad_id, "add_eos_token": False}
    values["add_bos_token"] = tokenizer.bos_id is not None
    if tokenizer.bos_id is not None:
        values["bos_token_id"] = tokenizer.bos_id
    metadata = {f"{PREFIX}{name}": value for name, value in values.items()}
    if chat is not None:
        stops = [index for index in chat.stop_ids if index != tokenizer.eos_id]
        stops.sort(key=lambda index: tokenizer.id_to_piece(index) == _END_OF_MESSAGE)
        names = ("eom",) if [tokenizer.id_to_piece(index) for index in stops] == [_END_OF_MESSAGE] else ("eot", "eom")
        metadata |= {f"{PREFIX}{name}_token_id": index for name, index in zip(names, stops, strict=False)}
        metadata[TEMPLATE_KEY] = _GENERATION_TAGS.sub("", chat.source)
    return metadata


def _table(size: int, entries: dict[int, tuple[str, PieceType]]) -> dict[str, Any]:
    """Tokens and their types, ids without a token filled with unused ones."""
    rows = [entries.get(index, (f"[PAD{index}]", PieceType.UNUSED)) for index in range(size)]
    return {"tokens": [text for text, _ in rows], "token_type": [int(kind) for _, kind in rows]}


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = tokenizer.parsed
    if model.algorithm != Algorithm.BPE:
        raise ValueError(f"a SentencePiece model of type {model.algorithm.name} has no form in GGUF; only BPE has")
    entries: dict[int, tuple[str, PieceType]] = {}
    for index, piece in enumerate(model.pieces):
        spaced = piece.type == PieceType.USER_DEFINED
        entries[index] = (piece.text.replace(SPACE_SYMBOL, " ") if spaced else piece.text, piece.type)
    entries |= {index: (text, PieceType.CONTROL) for text, index in tokenizer.specials}
    scores = [piece.score for piece in model.pieces]
    return {
        "model": "llama",
        "pre": "default",
        **_table(tokenizer.vocab_size, entries),
        "scores": scores + [_UNREACHED_SCORE] * (tokenizer.vocab_size - len(scores)),
        "unknown_token_id": model.unk_id,
        "add_space_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
        **({"precompiled_charsmap": list(model.charsmap)} if model.charsmap else {}),
    }


def _entries(tokenizer: HuggingFaceTokenizer) -> dict[int, tuple[str, PieceType]]:
    definition = tokenizer.parsed
    entries = {index: (text, PieceType.NORMAL) for text, index in vocabulary_of(definition["model"]).items()}
    for token in definition["added_tokens"]:
        entries[token["id"]] = (token["content"], PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED)
    return entries


def _from_byte_level(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    definition, model = tokenizer.parsed, tokenizer.parsed["model"]
    if model["type"] != "BPE" or definition.get("normalizer") not in (None, {"type": "NFC"}):
        raise ValueError(
            f"a tokenizer.json of type {model['type']} with the normalizer {definition.get('normalizer')} has no form in GGUF"
        )
    words = _words(definition.get("pre_tokenizer"))
    names = [name for name, patterns in WORDS.items() if patterns == words]
    if not names and model["merges"]:
        raise ValueError(
            f"GGUF has no name for the words that this tokenizer.json cuts texts into: {' then '.join(words) or 'none'}"
        )
    return {
        "model": "gpt2",
        "pre": names[0] if names else "gpt-2",  # without merges the words do not matter
        **_table(tokenizer.vocab_size, _entries(tokenizer)),
        "merges": [" ".join(merge_pair(merge)) for merge in model["merges"]],
    }


def _words(step: Definition | None) -> tuple[str, ...]:
    """The patterns of a pre-tokenizer in their order; one that GGUF cannot express is its own name."""
    if step is None:
        return ()
    if step["type"] == "Sequence":
        return tuple(pattern for inner in step["pretokenizers"] for pattern in _words(inner))
    if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return (str(step["pattern"].get("Regex")),)
    if step["type"] == "Digits" and step.get("individual_digits"):
        return (r"\p{N}",)
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return (GPT2_PATTERN,) if step.get("use_regex", True) else ()
    return (f"{step['type']} {step}",)


def _from_pieces(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """A tokenizer.json that was made from a SentencePiece BPE: the order of its merges gives the scores."""
    definition, model = tokenizer.parsed, tokenizer.parsed["model"]
    if tokenizer.streaming_style != "pieces" or model["type"] != "BPE":
        raise ValueError(
            f"a tokenizer.json of type {model['type']} that is neither byte-level nor of SentencePiece has no form in GGUF"
        )
    entries = _entries(tokenizer)
    order: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        order.setdefault("".join(merge_pair(merge)), rank)
    scores = [_UNREACHED_SCORE] * tokenizer.vocab_size
    unknown = None
    for index, (text, kind) in entries.items():
        if text == model.get("unk_token"):
            unknown, kind = index, PieceType.UNKNOWN
        elif kind == PieceType.NORMAL and BYTE_PIECE.fullmatch(text) and model.get("byte_fallback"):
            kind = PieceType.BYTE
        elif kind == PieceType.NORMAL and text not in order and len(text) > 1:
            kind = PieceType.UNUSED
        scores[index] = 0.0 if kind != PieceType.NORMAL else -float(order.get(text, 0))
        entries[index] = (text.replace(SPACE_SYMBOL, " ") if kind == PieceType.USER_DEFINED else text, kind)
    if unknown is None:
        raise ValueError("the tokenizer.json names no unknown token, which GGUF's SentencePiece form needs")
    steps = [definition.get("normalizer"), definition.get("pre_tokenizer")]
    return {
        "model": "llama",
        "pre": "default",
        **_table(tokenizer.vocab_size, entries),
        "scores": scores,
        "unknown_token_id": unknown,
        "add_space_prefix": any(_prefixes(step) for step in steps),
        "remove_extra_whitespaces": False,
    }


def _prefixes(step: Definition | None) -> bool:
    """Whether a normaliser or pre-tokenizer puts a space in front of texts."""
    if step is None:
        return False
    inner: Sequence[Definition] = step.get("normalizers") or step.get("pretokenizers") or []
    metaspace = step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Prepend" or metaspace or any(map(_prefixes, inner))
