"""The byte tokenizer."""

import hypothesis
from hypothesis import strategies as st

from lmx.tokenizer.bytes import ByteTokenizer


@hypothesis.given(st.text(st.characters(codec=None)))
def test_every_string_round_trips_and_makes_no_special(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(3 <= index < tokenizer.vocab_size for index in ids)


def test_lone_surrogates_round_trip() -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode("a\ud800b")) == "a\ud800b"


def test_ids_are_the_bytes_behind_three_specials() -> None:
    assert ByteTokenizer().encode("Aé") == [3 + 0x41, 3 + 0xC3, 3 + 0xA9]


def test_specials_are_dropped_and_broken_utf8_becomes_replacement_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([tokenizer.bos_id, 3 + 0x41, 3 + 0xC3, tokenizer.eos_id]) == "A\ufffd"


def test_pieces_are_readable() -> None:
    tokenizer = ByteTokenizer()
    assert [tokenizer.id_to_piece(index) for index in (1, 3 + 0x41, 3 + 0x0A)] == ["<s>", "A", "<0x0A>"]
