"""What the JSON files of a Hugging Face folder say about special tokens and the chat template."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmx.tokenizer.roles import Roles
from lmx.tokenizer.templates import TURN_ENDS
from lmx.tokenizer.text import read_file

TURN_END_TEXTS = tuple(text for texts in TURN_ENDS.values() for text in texts)
_ROLE_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPLATE_FILE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The special tokens of a folder, whichever file names them.

    Attributes:
      names: text of `bos_token` and its like.
      absent: roles that the folder says it does not have.
      ids: ids of added tokens by text.
      specials: texts of special tokens.
      role_ids: ids of the roles ("bos", "eos", "pad") from `config.json` and `generation_config.json`; of EOS the first.
      eos_ids: every id that ends a generation.
      template: source of the chat template.
      chat_format: name of a chat format, in Qwen's first folders.
    """

    names: Mapping[str, str]
    absent: frozenset[str]
    ids: Mapping[str, int]
    specials: frozenset[str]
    role_ids: Mapping[str, int]
    eos_ids: tuple[int, ...]
    template: str | None
    chat_format: str | None

    @property
    def tokens(self) -> list[str]:
        """Texts of all tokens that the files name, in a fixed order."""
        return sorted({*self.specials, *self.ids})

    @property
    def names_tokens(self) -> bool:
        """Whether the files name any token."""
        return bool(self.specials or self.ids)

    @property
    def no_roles(self) -> Roles:
        """Roles to open a vocabulary with before its own are known."""
        return Roles(bos_id=None, eos_id=0, pad_id=0)

    def roles(self, ids: Mapping[str, int], vocab_size: int, defaults: Mapping[str, int] | None = None) -> Roles:
        """The roles in a vocabulary.

        Args:
          ids: id of each token by text.
          vocab_size: number of ids.
          defaults: ids that the vocabulary itself gives to "bos", "eos" and "pad", negative for none.

        Raises:
          ValueError: there is no EOS, or an id is outside the vocabulary.
        """
        found: dict[str, int | None] = {}
        for role in ("bos", "eos", "pad"):
            named = ids.get(self.names.get(f"{role}_token", ""))
            configured = self.role_ids.get(role)
            default = (defaults or {}).get(role, -1)
            given = [configured, named] if role == "eos" else [named, None if f"{role}_token" in self.absent else configured]
            candidates = [index for index in (*given, default if default >= 0 else None) if index is not None]
            found[role] = candidates[0] if candidates else None
        if found["eos"] is None:
            raise ValueError(
                "no file says which token ends a text: eos_token in tokenizer_config.json or eos_token_id in config.json"
            )
        pad = found["eos"] if found["pad"] is None or not 0 <= found["pad"] < vocab_size else found["pad"]
        roles = Roles(bos_id=found["bos"], eos_id=found["eos"], pad_id=pad)
        roles.check(vocab_size)
        return roles


def read_settings(folder: Path) -> Settings:
    """Reads the JSON files of a folder; each of them may be missing.

    Raises:
      ValueError: a file is damaged or has another form.
    """
    config = _object(folder / "tokenizer_config.json")
    tokens = _object(folder / "special_tokens_map.json") | config
    generation, model = _object(folder / "generation_config.json"), _object(folder / "config.json")
    names = {name: text for name in _ROLE_NAMES if (text := _text(tokens.get(name), name)) is not None}
    ids, flagged = _added(config, _object(folder / "added_tokens.json"))
    others = _listed(tokens, "additional_special_tokens") | _listed(tokens, "extra_special_tokens")
    eos = _ids(generation, "eos_token_id") or _ids(model, "eos_token_id")
    role_ids = {
        role: found[0]
        for role in ("bos", "eos", "pad")
        if (found := _ids(generation, f"{role}_token_id") or _ids(model, f"{role}_token_id"))
    }
    return Settings(
        names=names,
        absent=frozenset(name for name in _ROLE_NAMES if name in tokens and tokens[name] is None),
        ids=ids,
        specials=frozenset({*names.values(), *others, *flagged}),
        role_ids=role_ids,
        eos_ids=tuple(eos),
        template=_template(folder, config),
        chat_format=generation.get("chat_format") if isinstance(generation.get("chat_format"), str) else None,
    )


def _object(path: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}; it may have been cut short") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, not an object")
    return value


def _text(value: Any, name: str) -> str | None:
    """Text of a token, given as such or as an object with a content."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{name} is {str(value)[:100]!r}, not the text of a token")
    return text or None


def _listed(config: Mapping[str, Any], name: str) -> set[str]:
    """Texts of the tokens under a name, in a list or as the values of an object."""
    value = config.get(name) or []
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{name} is {str(value)[:100]!r}, not a list of tokens")
    texts = (_text(item, name) for item in (value.values() if isinstance(value, dict) else value))
    return {text for text in texts if text is not None}


def _ids(config: Mapping[str, Any], name: str) -> list[int]:
    """Ids under a name, which may be one id, a list, or nothing."""
    value = config.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    for index in found:
        if type(index) is not int or index < -1:
            raise ValueError(f"{name} is {str(value)[:100]}, not an id or a list of ids")
    return [index for index in found if index >= 0]


def _added(config: Mapping[str, Any], listed: Mapping[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Ids of the added tokens, and those that are flagged as special."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError("added_tokens_decoder in tokenizer_config.json is not an object")
    ids: dict[str, int] = {}
    flagged: set[str] = set()
    for key, token in decoder.items():
        text = _text(token, "added_tokens_decoder") if isinstance(token, dict) else None
        if text is None or not key.isdecimal() or len(key) > 9:
            raise ValueError(f"added_tokens_decoder in tokenizer_config.json has the entry {key[:20]!r}: {str(token)[:80]!r}")
        ids[text] = int(key)
        if token.get("special"):
            flagged.add(text)
    for text, index in listed.items():
        if type(index) is not int or not 0 <= index < 10**9:
            raise ValueError(f"added_tokens.json gives {text[:80]!r} the id {str(index)[:20]!r}")
        ids.setdefault(text, index)
    return ids, flagged


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own comes first, and of several named ones the default."""
    if (folder / _TEMPLATE_FILE).is_file():
        try:
            return read_file(folder / _TEMPLATE_FILE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{_TEMPLATE_FILE} is not UTF-8: {error}") from error
    value = config.get("chat_template") or _object(folder / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        defaults = [entry.get("template") for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = defaults[0] if defaults else None
    if value is not None and not isinstance(value, str):
        raise ValueError("chat_template in tokenizer_config.json is neither a text nor a list with one named default")
    return value or None
