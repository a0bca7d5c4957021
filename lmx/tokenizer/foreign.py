"""Tokenizers and chat formats of other frameworks' folders, read and written."""

import json
import re
from pathlib import Path
from typing import Any

from lmx.tokenizer.chat import Chat, built_in
from lmx.tokenizer.conversion import has_definition, to_huggingface
from lmx.tokenizer.definition import parse
from lmx.tokenizer.foreign_settings import TURN_END_TEXTS, Settings, read_settings
from lmx.tokenizer.huggingface import DEFINITION_FILE, HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import MODEL_FILE, SentencePieceTokenizer
from lmx.tokenizer.sentencepiece_model import PieceType
from lmx.tokenizer.templates import BUILT_IN
from lmx.tokenizer.text import LOOKS_SPECIAL, read_file
from lmx.tokenizer.tiktoken import STYLES, TiktokenTokenizer, parse_ranks

_RANK_LINE = re.compile(rb"\A\s*[A-Za-z0-9+/]+={0,2} \d+\s")
_ADDED_SPECIAL = re.compile(rf"{LOOKS_SPECIAL.pattern}|</?(s|pad|unk|bos|eos)>|\[PAD\]")
_ADDED_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read(directory: str | Path, *, vocab_size: int | None = None) -> tuple[Tokenizer, Chat | None]:
    """The tokenizer and chat format of a folder as Hugging Face, Meta or Qwen lay it out.

    The vocabulary is `tokenizer.json`, else `tokenizer.model` (SentencePiece or tiktoken ranks, told apart by content), else the
    one `*.tiktoken`. BOS, EOS, padding and the ends of turns come from `generation_config.json`, `config.json`,
    `tokenizer_config.json` and `special_tokens_map.json`. Nothing in these files is evaluated.

    Args:
      directory: the folder.
      vocab_size: rows of the model's embedding table.

    Returns:
      The tokenizer, and None instead of a chat format when the folder has none.

    Raises:
      ValueError: a file is missing, damaged or contradicts another one, or the tokenizer has more ids than `vocab_size`.
    """
    folder = Path(directory)
    ranks_files = sorted(folder.glob("*.tiktoken"))
    try:
        settings = read_settings(folder)
        if (folder / DEFINITION_FILE).is_file():
            tokenizer: Tokenizer = _from_definition(read_file(folder / DEFINITION_FILE), settings)
        elif (folder / MODEL_FILE).is_file():
            data = read_file(folder / MODEL_FILE)
            tokenizer = _from_ranks(data, "llama3", settings) if _RANK_LINE.match(data) else _from_model(data, settings)
        elif len(ranks_files) == 1:
            tokenizer = _from_ranks(read_file(ranks_files[0]), "qwen", settings)
        else:
            raise ValueError(f"there is no tokenizer: expected {DEFINITION_FILE}, {MODEL_FILE} or one *.tiktoken file")
        chat = _chat(tokenizer, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids and the model's embedding only {vocab_size} rows; "
            "they do not belong together"
        )
    return tokenizer, chat


def _from_definition(data: bytes, settings: Settings) -> HuggingFaceTokenizer:
    """The file as it is, but with the tokens marked as special that the configuration names as such."""
    parse(data)
    if settings.names_tokens:
        data = _with_settings(json.loads(data), settings) or data
    bare = HuggingFaceTokenizer(data, settings.no_roles)
    by_text = bare.ids_by_text
    for text, index in settings.ids.items():
        if by_text.get(text, index) != index:
            raise ValueError(f"tokenizer_config.json gives {text!r} the id {index}, and {DEFINITION_FILE} {by_text[text]}")
    tokenizer = HuggingFaceTokenizer(data, settings.roles(by_text, bare.vocab_size))
    tokenizer.check()
    return tokenizer


def _with_settings(raw: dict[str, Any], settings: Settings) -> bytes | None:
    """The changed file, None if nothing changes."""
    added = [token for token in raw.get("added_tokens") or [] if isinstance(token, dict)]
    by_text = {token.get("content"): token for token in added}
    vocabulary = raw["model"].get("vocab")
    vocabulary = vocabulary if isinstance(vocabulary, dict) else {}
    changed = False
    for text in settings.tokens:
        if text in by_text:
            wanted = text in settings.specials and not by_text[text].get("special")
        else:
            index = settings.ids.get(text, vocabulary.get(text))
            wanted = index is not None and (text in settings.specials or text not in vocabulary)
            if wanted:
                by_text[text] = {"id": index, "content": text, **dict.fromkeys(_ADDED_FLAGS, False)}
                added.append(by_text[text])
        if wanted:
            by_text[text]["special"] = text in settings.specials
            changed = True
    raw["added_tokens"] = sorted(added, key=lambda token: token["id"] if isinstance(token.get("id"), int) else -1)
    return json.dumps(raw, ensure_ascii=False).encode("utf-8", "surrogatepass") if changed else None


def _from_model(data: bytes, settings: Settings) -> SentencePieceTokenizer:
    bare = SentencePieceTokenizer(data, lossless=False)
    pieces = bare.parsed.pieces
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    specials: dict[str, int] = {}
    for text, index in settings.ids.items():
        if index >= len(pieces) and not (text in settings.specials or _ADDED_SPECIAL.fullmatch(text)):
            raise ValueError(
                f"{text!r} was added to {MODEL_FILE} as ordinary text, which needs a {DEFINITION_FILE}; convert it first"
            )
        if index >= len(pieces):
            specials[text] = index
        elif pieces[index].text != text:
            raise ValueError(
                f"tokenizer_config.json gives {text!r} the id {index}, which is {pieces[index].text!r} in {MODEL_FILE}"
            )
    for index, piece in enumerate(pieces):
        named = piece.text in settings.specials or LOOKS_SPECIAL.fullmatch(piece.text)
        if piece.type == PieceType.USER_DEFINED and named:
            specials[piece.text] = index
    model = bare.parsed
    defaults = {"bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id}
    roles = settings.roles(ids | specials, max([len(pieces), *(index + 1 for index in specials.values())]), defaults)
    tokenizer = SentencePieceTokenizer(data, False, tuple(specials.items()), roles)
    tokenizer.check()
    return tokenizer


def _from_ranks(data: bytes, style: str, settings: Settings) -> TiktokenTokenizer:
    names = dict(enumerate(STYLES[style].specials, start=len(parse_ranks(data))))
    first = min(names)
    names |= {index: text for text, index in settings.ids.items() if index >= first}
    if len(set(names.values())) != len(names):  # a name that moved: the folder's own tokens alone count
        names = {index: text for text, index in settings.ids.items() if index >= first}
    specials = tuple((text, index) for index, text in sorted(names.items()))
    ids = dict(specials)
    known = STYLES[style]
    defaults = {"bos": ids.get(known.bos or "", -1), "eos": ids.get(known.eos, -1), "pad": ids.get(known.pad, -1)}
    tokenizer = TiktokenTokenizer(data, style, specials, settings.roles(ids, max(names) + 1, defaults))
    tokenizer.check()
    return tokenizer


def _chat(tokenizer: Tokenizer, settings: Settings) -> Chat | None:
    built_ins = {source: name for name, source in BUILT_IN.items()}
    if settings.template is None:
        return built_in("chatml", tokenizer) if settings.chat_format == "chatml" else None
    ids = {tokenizer.id_to_piece(index): index for index in tokenizer.special_ids}
    ends = [ids[text] for text in TURN_END_TEXTS if text in ids and text in settings.template]
    stops = [index for index in dict.fromkeys([*settings.eos_ids, *ends]) if index != tokenizer.eos_id]
    if settings.names.get("eos_token") in ids:
        stops.append(ids[settings.names["eos_token"]])
    for index in stops:
        if not 0 <= index < tokenizer.vocab_size:
            raise ValueError(f"eos_token_id={index} is outside the tokenizer's vocabulary of {tokenizer.vocab_size}")
    template = built_ins.get(settings.template, settings.template)
    return Chat(template, tuple(dict.fromkeys([tokenizer.eos_id, *stops])), tuple(settings.names.items()))


def write(directory: str | Path, tokenizer: Tokenizer, chat: Chat | None) -> list[str]:
    """Writes the tokenizer as transformers' `AutoTokenizer` reads it, beside the files that it came from.

    A SentencePiece model that no `tokenizer.json` expresses alike is written as `tokenizer.model` only. The caller's
    `generation_config.json` should have `eos_token_id` = the tokenizer's EOS, then `chat.stop_ids`.

    Returns:
      Names of the files written.

    Raises:
      ValueError: the tokenizer has no such form.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        files[MODEL_FILE] = tokenizer.model
    if not isinstance(tokenizer, SentencePieceTokenizer) or has_definition(tokenizer):
        files[DEFINITION_FILE] = to_huggingface(tokenizer).definition
    if isinstance(tokenizer, TiktokenTokenizer):
        files[MODEL_FILE if tokenizer.style == "llama3" else f"{tokenizer.style}.tiktoken"] = tokenizer.ranks
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    if tokenizer.pad_id == tokenizer.eos_id:
        names["pad_token"] = None
    tokens = {name: tokenizer.id_to_piece(index) for name, index in names.items() if index is not None}
    tokens |= dict(chat.variables) if chat is not None else {}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if DEFINITION_FILE in files else "LlamaTokenizer",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        **dict.fromkeys(names, None),
        **tokens,
    }
    if chat is not None:
        template = BUILT_IN.get(chat.template, chat.template)
        config["chat_template"] = template
        files["chat_template.jinja"] = template.encode()
    files["tokenizer_config.json"] = _json(config)
    files["special_tokens_map.json"] = _json(tokens)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return sorted(files)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
