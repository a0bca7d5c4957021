"""Every kind of tokenizer as a `tokenizer.json`, with the same ids."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmx.tokenizer.bytes import SPECIALS, ByteTokenizer
from lmx.tokenizer.definition import character_of_byte
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.sentencepiece import SPACE_SYMBOL, SentencePieceTokenizer
from lmx.tokenizer.sentencepiece_model import Algorithm, Piece, PieceType
from lmx.tokenizer.tiktoken import STYLES, TiktokenTokenizer

Merge = tuple[str, str]


def to_huggingface(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The tokenizer as a `tokenizer.json`.

    A tokenizer that already is one comes back as it is. Of SentencePiece models, one that `train` made reads U+2581 in a text as a
    space then, and BPE may cut a text otherwise where two pairs of pieces make the same piece.

    Raises:
      ValueError: it is of a kind, or a SentencePiece model, that has no such form.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        definition = _from_bytes()
    elif isinstance(tokenizer, TiktokenTokenizer):
        definition = _from_ranks(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        definition = _from_sentencepiece(tokenizer)
    else:
        raise ValueError(f"a tokenizer of kind {type(tokenizer).__name__} cannot be written as tokenizer.json")
    roles = Roles(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    result = HuggingFaceTokenizer(json.dumps(definition, ensure_ascii=False).encode(), roles)
    result.check()
    return result


def spelled(data: bytes) -> str:
    """Bytes in GPT-2's spelling, one character each."""
    characters = character_of_byte()
    return "".join(characters[byte] for byte in data)


def split_step(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that makes a word of each match of a regular expression, and of what stands between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Sequence[Merge],
    *,
    steps: Sequence[dict[str, Any]],
    added: Iterable[tuple[str, int, bool]],
    nfc: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A byte-level BPE as the object of a `tokenizer.json`.

    Args:
      vocabulary: id of each token, in GPT-2's spelling.
      merges: pairs of tokens, the first first.
      steps: pre-tokenizers that cut a text into words.
      added: text, id and whether it is special, of the tokens that stand beside the vocabulary.
      nfc: bring texts into normal form C first.
      ignore_merges: a word that is a token becomes that token, whatever the merges say.
    """
    added = list(added)
    # The package numbers added tokens itself unless the vocabulary has them, too; those behind it need no entry.
    vocabulary = dict(vocabulary) | {text: index for text, index, _ in added if index < len(vocabulary) + len(added)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges}
    return _definition(
        added=[added_token(*entry) for entry in added],
        normalizer={"type": "NFC"} if nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, level]},
        decoder=level,
        model=model | {"vocab": dict(vocabulary), "merges": [list(merge) for merge in merges]},
    )


def added_token(text: str, index: int, special: bool, normalized: bool = False) -> dict[str, Any]:
    """One entry of `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": index, "content": text, **flags}


def _definition(*, added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    order = sorted(added, key=lambda token: token["id"])
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": order, "post_processor": None, **parts}


def _from_bytes() -> dict[str, Any]:
    vocabulary = {spelled(bytes((byte,))): len(SPECIALS) + byte for byte in range(256)}
    return byte_level(vocabulary, [], steps=[], added=[(text, index, True) for index, text in enumerate(SPECIALS)])


def _from_ranks(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    """Merges in the order of the ranks that they make; tiktoken merges any pair whose joined bytes have a rank."""
    ranks, style = tokenizer.parsed, STYLES[tokenizer.style]
    merges: list[Merge] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((spelled(left), spelled(right)) for left, right in known)
    return byte_level(
        {spelled(token): rank for token, rank in ranks.items()},
        merges,
        steps=[split_step(style.pattern)],
        added=[(text, index, True) for text, index in tokenizer.special_by_text.items()],
        nfc=style.nfc,
        ignore_merges=True,
    )


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = tokenizer.parsed
    if not has_definition(tokenizer):
        raise ValueError("no tokenizer.json gives the ids of this SentencePiece model; keep its tokenizer.model")
    specials = dict(tokenizer.specials) | {
        piece.text: index for index, piece in enumerate(model.pieces) if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)
    }
    added = [added_token(text, index, True) for text, index in specials.items()]
    for index, piece in enumerate(model.pieces):
        # Unigram weighs a user-defined piece against others; BPE finds it before anything else, as added tokens are found.
        if piece.type == PieceType.USER_DEFINED and piece.text not in specials and model.algorithm == Algorithm.BPE:
            added.append(added_token(piece.text, index, False, normalized=SPACE_SYMBOL in piece.text))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}
    prefix = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE_SYMBOL}, replace]}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_SYMBOL}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _definition(
        added=added,
        normalizer=prefix if model.add_dummy_prefix else replace,
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=_sentencepiece_model(tokenizer),
    )


def has_definition(tokenizer: SentencePieceTokenizer) -> bool:
    """Whether a `tokenizer.json` can give the ids of a SentencePiece model.

    It cannot where the model normalises texts, is neither BPE nor Unigram, or has both a dummy prefix and user-defined pieces in a
    BPE: the `tokenizers` package would put the prefix behind each such piece too.
    """
    model, special = tokenizer.parsed, tokenizer.special_ids
    user_defined = any(piece.type == PieceType.USER_DEFINED and index not in special for index, piece in enumerate(model.pieces))
    if model.charsmap or model.remove_extra_whitespaces or model.algorithm not in (Algorithm.BPE, Algorithm.UNIGRAM):
        return False
    return not (user_defined and model.add_dummy_prefix and model.algorithm == Algorithm.BPE)


def _sentencepiece_model(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = tokenizer.parsed
    if model.algorithm == Algorithm.UNIGRAM:
        # SentencePiece itself scores every user-defined piece with -0.1, whatever its length.
        vocabulary: Any = [[piece.text, -0.1 if piece.type == PieceType.USER_DEFINED else piece.score] for piece in model.pieces]
        return {"type": "Unigram", "unk_id": model.unk_id, "byte_fallback": model.byte_fallback, "vocab": vocabulary}
    flags: dict[str, Any] = {"dropout": None, "unk_token": model.pieces[model.unk_id].text, "continuing_subword_prefix": None}
    flags |= {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": model.byte_fallback, "ignore_merges": False}
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    return {"type": "BPE", **flags, "vocab": vocabulary, "merges": [list(merge) for merge in merges_of(model.pieces)]}


def merges_of(pieces: Sequence[Piece]) -> list[Merge]:
    """The merges that a SentencePiece BPE makes: any two pieces whose joined text is a piece, the best score first."""
    scores = {piece.text: piece.score for piece in pieces if piece.type in (PieceType.NORMAL, PieceType.UNUSED)}
    found: list[tuple[float, int, Merge]] = []
    for number, (text, score) in enumerate(scores.items()):
        for cut in range(1, len(text)):
            if text[:cut] in scores and text[cut:] in scores:
                found.append((-score, number, (text[:cut], text[cut:])))
    found.sort(key=lambda entry: entry[:2])
    return [merge for _, _, merge in found]
