"""tokenizer.json: the tokenizers package's own ids, without specials from text, and files that are refused."""

import copy
import json
from typing import Any

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st

from lmx.tokenizer.conversion import added_token
from lmx.tokenizer.definition import parse
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.roles import Roles
from lmx.tokenizer.streaming import TextStream

ROLES = Roles(bos_id=0, eos_id=1, pad_id=1)
SPACE = "\u2581"


def unigram(**parts: Any) -> dict[str, Any]:
    """A Unigram vocabulary in which the specials are ordinary pieces, as in files made from SentencePiece models."""
    pieces = ["<s>", "</s>", "<unk>", "<", "/", "s", ">", SPACE, "a", "b", "ab", f"{SPACE}a"]
    model = {"type": "Unigram", "unk_id": 2, "vocab": [[piece, -float(number)] for number, piece in enumerate(pieces)]}
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    added = [added_token("<s>", 0, True), added_token("</s>", 1, True), added_token("<unk>", 2, True)]
    empty = {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace, "post_processor": None}
    return {"version": "1.0", "added_tokens": added, **empty, "model": model, **parts}


def made(definition: dict[str, Any]) -> HuggingFaceTokenizer:
    tokenizer = HuggingFaceTokenizer(json.dumps(definition).encode(), ROLES)
    tokenizer.check()
    return tokenizer


def test_a_model_that_knows_the_specials_texts_does_not_make_specials_of_them() -> None:
    tokenizer = made(unigram())
    backend = tokenizers.Tokenizer.from_str(json.dumps(unigram()))
    backend.encode_special_tokens = True
    assert 1 in backend.encode("a</s>b").ids  # so the package's own switch is not enough
    ids = tokenizer.encode("a</s>b")
    assert tokenizer.special_ids.isdisjoint(ids)
    assert [tokenizer.id_to_piece(index) for index in ids] == [f"{SPACE}a", "<", "/", "s", ">", "b"]
    assert tokenizer.encode_with_specials("a</s>b").count(1) == 1


def test_the_unknown_token_stays_what_the_model_makes_of_unknown_characters() -> None:
    assert made(unigram()).encode("aéb") == [11, 2, 9]


def test_prefix_spaces_stand_at_the_start_and_not_behind_specials_or_texts() -> None:
    tokenizer = made(unigram())
    assert tokenizer.encode_parts(["a", 1, "a", "a"]) == [[11], [1], [8], [8]]
    prepending = unigram(pre_tokenizer=None, normalizer={"type": "Prepend", "prepend": SPACE})
    assert made(prepending).encode_parts(["a", 1, "a", "a"]) == [[11], [1], [11], [8]]
    levels = unigram(pre_tokenizer={"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False})
    assert made(levels).encode_parts(["a", 1, "a", "a"]) == [[11], [1], [11], [8]]


def test_specials_that_swallow_spaces_swallow_them_in_parts_too() -> None:
    added = [
        added_token("<s>", 0, True),
        added_token("</s>", 1, True) | {"lstrip": True, "rstrip": True},
        added_token("<unk>", 2, True),
    ]
    tokenizer = made(unigram(added_tokens=added))
    text = "ab </s>  ab"
    assert [index for ids in tokenizer.encode_parts(["ab ", 1, "  ab"]) for index in ids] == tokenizer.encode_with_specials(text)


def test_post_processors_truncation_and_padding_are_left_out() -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    tokenizer = made(unigram(post_processor=processor, truncation=cut, padding=fill))
    assert tokenizer.encode("abab") == tokenizer.encode_with_specials("abab") == [7, 10, 10]


def test_a_decoder_that_looks_at_whole_texts_is_streamed_at_the_end() -> None:
    tokenizer = made(unigram(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}))
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("ab a")
    assert tokenizer.streaming_style is None and tokenizer.token_bytes(8) is None
    assert [stream.push(index) for index in ids] == [""] * len(ids)
    assert stream.finish() == tokenizer.decode(ids)


BROKEN: list[tuple[str, Any, str]] = [
    ("", "{", "not valid JSON"),
    ("", "[]", "must be an object with a model"),
    ("model", {"type": "Magic", "vocab": {}}, "model of type 'Magic'"),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}, "sets dropout=0.1"),
    ("model", {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}, "2 tokens only 1 different ids"),
    ("model", {"type": "BPE", "vocab": {"a": -4}, "merges": []}, r"the ids -4..2; they must lie in"),
    ("model", {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}, r"they must lie in"),
    ("model", {"type": "BPE", "vocab": ["a"], "merges": []}, "not a list of"),
    ("model", {"type": "BPE", "vocab": {"a": "0"}, "merges": []}, "no vocabulary that maps"),
    ("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["a", 1.0]]}, "of which only 1 differ"),
    ("model", {"type": "BPE", "vocab": {"a": 5}, "merges": [["a", "q"]]}, "not understood by tokenizers"),
    ("added_tokens", 7, "for its added_tokens, not a list"),
    ("added_tokens", [{"content": "x"}], "needs an id and a content"),
    ("added_tokens", [{"content": "", "id": 3}], "empty added token with id 3"),
    ("added_tokens", [{"content": "zz", "id": 3}], "'zz' the id 3, which is '<'"),
    ("added_tokens", [added_token("zz", 99, True)], "numbers 'zz' as 99, and the tokenizers package as 12"),
    ("pre_tokenizer", {"type": "Magic"}, "not understood by tokenizers"),
]


@pytest.mark.parametrize(("key", "value", "message"), BROKEN)
def test_a_broken_file_is_one_sentence(key: str, value: Any, message: str) -> None:
    data = value if not key else json.dumps(unigram() | {key: value})
    with pytest.raises(ValueError, match=message):
        tokenizer = HuggingFaceTokenizer(data.encode(), ROLES)
        tokenizer.parsed  # noqa: B018
        tokenizer.check()


def test_roles_outside_the_vocabulary_are_an_error() -> None:
    with pytest.raises(ValueError, match="eos_id=12 is outside the tokenizer's vocabulary of 12"):
        HuggingFaceTokenizer(json.dumps(unigram()).encode(), Roles(bos_id=None, eos_id=12, pad_id=0)).check()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_mutated_files_are_refused_with_a_sentence_or_work(data: st.DataObject) -> None:
    definition = copy.deepcopy(unigram())
    node: Any = definition
    while isinstance(node, (dict, list)) and node:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
        if not isinstance(node[key], (dict, list)) or data.draw(st.booleans()):
            node[key] = data.draw(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just([]), st.just({}), st.booleans()))
            break
        node = node[key]
    try:
        tokenizer = made(definition)
        tokenizer.decode(tokenizer.encode("ab </s> é"))
        tokenizer.encode_parts(["a", 1, "b", "a"])
    except ValueError as error:
        assert str(error)


def test_a_damaged_copy_is_noticed_by_parse() -> None:
    text = json.dumps(unigram())
    for size in (1, 40, len(text) - 1):
        with pytest.raises(ValueError, match="cut short"):
            parse(text[:size].encode())
