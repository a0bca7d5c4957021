"""What stands in a `tokenizer.json`, checked, and the changes to it that keep specials and prefix spaces out of texts."""

import copy
import functools
import json
from typing import Any

Definition = dict[str, Any]
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
MAX_ID = 2**24
# Stands behind the names of specials that a text must not match; noncharacters, which interchanged text does not have.
GUARD = "\ufdd0\ufdd1" * 4
_ADDED_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def parse(data: bytes) -> Definition:
    """Reads a `tokenizer.json` and checks its shape.

    Raises:
      ValueError: it is not one, or does something that cannot be reproduced.
    """
    try:
        definition = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tokenizer.json ({len(data)} bytes) is not valid JSON: {error}; it may have been cut short") from error
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise ValueError("tokenizer.json must be an object with a model")
    model = definition["model"]
    kind = model.setdefault("type", _untyped_model(model))
    if kind not in MODELS:
        raise ValueError(f"tokenizer.json has a model of type {kind!r}; known are {', '.join(MODELS)}")
    if model.get("dropout"):
        raise ValueError(f"tokenizer.json sets dropout={model['dropout']}, so the same text would get other ids each time")
    added = definition.get("added_tokens") or []
    if not isinstance(added, list):
        raise ValueError(f"tokenizer.json has {str(added)[:60]!r} for its added_tokens, not a list")
    definition["added_tokens"] = [_added_token(token) for token in added]
    _check_vocabulary(model, definition["added_tokens"])
    return definition


def _untyped_model(model: Definition) -> str:
    """The type of a model that does not name it, as early files did not."""
    return "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordLevel"


def _added_token(token: Any) -> Definition:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or type(token.get("id")) is not int:
        raise ValueError(f"tokenizer.json has the added token {str(token)[:100]!r}; it needs an id and a content")
    if not token["content"]:
        raise ValueError(f"tokenizer.json has an empty added token with id {token['id']}")
    return {name: bool(token.get(name, False)) for name in _ADDED_FLAGS} | {"id": token["id"], "content": token["content"]}


def _check_vocabulary(model: Definition, added: list[Definition]) -> None:
    vocabulary = vocabulary_of(model)
    if not vocabulary and not added:
        raise ValueError("tokenizer.json has no vocabulary")
    by_id = {index: text for text, index in vocabulary.items()}
    if len(by_id) != len(vocabulary):
        raise ValueError(f"tokenizer.json gives {len(vocabulary)} tokens only {len(by_id)} different ids")
    for token in added:
        held = by_id.setdefault(token["id"], token["content"])
        if held != token["content"] or vocabulary.get(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"tokenizer.json gives the added token {token['content']!r} the id {token['id']}, which is {held!r}")
    if not (min(by_id) >= 0 and max(by_id) < MAX_ID):
        raise ValueError(f"tokenizer.json has the ids {min(by_id)}..{max(by_id)}; they must lie in 0..{MAX_ID - 1}")


def vocabulary_of(model: Definition) -> dict[str, int]:
    """Id of each token of the model, added tokens aside.

    Raises:
      ValueError: the vocabulary has another shape.
    """
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in vocabulary):
            raise ValueError("tokenizer.json has a vocabulary that is not a list of [text, score]")
        texts = {entry[0]: index for index, entry in enumerate(vocabulary)}
        if len(texts) != len(vocabulary):
            raise ValueError(f"tokenizer.json has {len(vocabulary)} tokens, of which only {len(texts)} differ")
        return texts
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise ValueError("tokenizer.json has no vocabulary that maps texts to ids")
    return vocabulary


def without_first_prefix(definition: Definition) -> Definition:
    """A copy that puts no space in front of a text where the original does so at the very start only."""
    return definition | {"pre_tokenizer": _changed(definition.get("pre_tokenizer"), _not_first)}


def without_prefix(definition: Definition) -> Definition:
    """A copy that puts nothing in front of texts."""
    return definition | {
        "pre_tokenizer": _changed(definition.get("pre_tokenizer"), _never),
        "normalizer": _changed(definition.get("normalizer"), _never),
    }


def _not_first(step: Definition) -> Definition:
    return step | {"prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else step


def _never(step: Definition) -> Definition | None:
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace" and (step.get("prepend_scheme", "always") != "never" or step.get("add_prefix_space")):
        return {key: value for key, value in step.items() if key != "add_prefix_space"} | {"prepend_scheme": "never"}
    if step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
        return step | {"add_prefix_space": False}
    return step


def _changed(step: Any, change: Any) -> Any:
    """A normaliser or pre-tokenizer with `change` applied to it or, in a sequence, to each of its steps."""
    if not isinstance(step, dict):
        return step
    for key in ("pretokenizers", "normalizers"):
        if isinstance(step.get(key), list):
            changed = [_changed(inner, change) for inner in step[key]]
            return step | {key: [inner for inner in changed if inner is not None]}
    return change(step)


def guarded(definition: Definition) -> Definition:
    """A copy in which no text is spelled like a special, for models whose own vocabulary has the specials' texts."""
    definition = copy.deepcopy(definition)
    specials = {token["content"] for token in definition["added_tokens"] if token["special"]}
    for token in definition["added_tokens"]:
        if token["special"]:
            token["content"] += GUARD
    model = definition["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[text + GUARD if text in specials else text, score] for text, score in model["vocab"]]
    else:
        model["vocab"] = {text + GUARD if text in specials else text: index for text, index in model["vocab"].items()}
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if "".join(merge_pair(merge)) not in specials]
    if model.get("unk_token") in specials:
        model["unk_token"] += GUARD
    definition["post_processor"] = None
    return definition


def merge_pair(merge: Any) -> tuple[str, str]:
    """The two tokens of a merge, in the older form "a b" or the newer ["a", "b"].

    Raises:
      ValueError: it is neither.
    """
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
        raise ValueError(f"tokenizer.json has the merge {str(merge)[:60]!r}, which is not a pair of tokens")
    return pair[0], pair[1]


def decoding_style(definition: Definition) -> str | None:
    """How ids become text: "bytes" (byte-level), "pieces" (U+2581 and byte fallback), or None for any other decoder."""
    decoder = definition.get("decoder") or {}
    steps: list[Definition] = (decoder.get("decoders") or []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes"
    space = [step for step in steps if step.get("type") == "Replace"]
    known = space and (space[0].get("pattern"), space[0].get("content")) == ({"String": "\u2581"}, " ")
    strip = [step for step in steps if step.get("type") == "Strip"]
    strips = not strip or [(step.get("content"), step.get("start"), step.get("stop")) for step in strip] == [(" ", 1, 0)]
    if known and strips and kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        return "pieces"
    return None


@functools.cache
def character_of_byte() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + number) for number, byte in enumerate(others)}


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The inverse of `character_of_byte`."""
    return {character: byte for byte, character in character_of_byte().items()}
