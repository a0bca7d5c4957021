"""Tokens as programs see them."""

import math

import pytest

from lmx.serve.piece import LOWEST_LOGPROB, TextOffsets, chat_logprobs, legacy_logprobs, token_bytes, token_text
from lmx.tokenizer.bytes import ByteTokenizer

BYTES = ByteTokenizer()


def test_a_token_that_is_part_of_a_character_shows_its_bytes() -> None:
    first, second = BYTES.encode("é")
    assert [token_text(token_bytes(BYTES, index)) for index in (first, second)] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert token_text(token_bytes(BYTES, BYTES.encode("a")[0])) == "a"
    assert (token_bytes(BYTES, BYTES.eos_id), token_bytes(BYTES, 300)) == (b"</s>", b"<300>")


def test_offsets_count_the_characters_before_a_token() -> None:
    offsets = TextOffsets(BYTES, start=10)
    assert offsets.push(BYTES.encode("aé")) == [10, 11, 11]
    assert offsets.push(BYTES.encode("b")) == [12]


def test_the_token_itself_is_among_the_most_likely_even_if_it_was_not() -> None:
    a, b, c = BYTES.encode("abc")
    found = legacy_logprobs(BYTES, [a, b], [None, -3.0], [[], [(c, -0.5)]], [0, 1])
    assert found == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -3.0],
        "top_logprobs": [None, {"c": -0.5, "b": -3.0}],
        "text_offset": [0, 1],
    }
    assert legacy_logprobs(BYTES, [a], [-1.0], None, [0])["top_logprobs"] is None


def test_chat_tokens_come_with_their_bytes() -> None:
    index = BYTES.encode("é")[0]
    found = chat_logprobs(BYTES, [index], [-1.0], [[(index, -1.0)]])
    entry = {"token": "\ufffd", "logprob": -1.0, "bytes": [0xC3]}
    assert found == {"content": [entry | {"top_logprobs": [entry]}], "refusal": None}


@pytest.mark.parametrize("value", [-math.inf, -1e30])
def test_what_json_cannot_hold_is_the_lowest_number(value: float) -> None:
    assert chat_logprobs(BYTES, [5], [value], None)["content"][0]["logprob"] == LOWEST_LOGPROB  # type: ignore[index]
