"""What every tokenizer promises, whatever its kind and origin."""

import pickle
import unicodedata
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.tokenizer import load
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.conversion import to_huggingface
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer
from lmx.tokenizer.streaming import TextStream
from lmx.tokenizer.tiktoken import TiktokenTokenizer

SPELLINGS = ["<|im_end|>", "<|eot_id|>", "<start_of_turn>", "</s>", "<s>", "<bos>", "<pad>", "<unk>", "<0x41>", "<|im_", "end|>"]
PIECES = st.sampled_from([*SPELLINGS, " ", "  ", "\n\n", "the", "é", "日本", "😀", "\u0301", "\x00", "1234", "<b>"])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join))


def promised(tokenizer: Tokenizer, text: str) -> str:
    """The text that decoding gives back: SentencePiece's models read U+2581 as a space, Qwen's files normalise."""
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.lossless:
        return text
    if tokenizer.streaming_style == "pieces":
        return text.replace("\u2581", " ")
    normalises = not isinstance(tokenizer, TiktokenTokenizer) and tokenizer.encode("e\u0301") == tokenizer.encode("é")
    return unicodedata.normalize("NFC", text) if normalises else text


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(text=TEXTS)
def test_text_round_trips_and_never_becomes_a_special(any_kind: Tokenizer, text: str) -> None:
    ids = any_kind.encode(text)
    assert any_kind.special_ids.isdisjoint(ids)
    assert all(0 <= index < any_kind.vocab_size for index in ids)
    assert any_kind.decode(ids) == promised(any_kind, text)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(texts=st.lists(TEXTS | st.sampled_from(["a\u2581b", "\u2581"]), max_size=6))
def test_a_batch_of_texts_gives_the_ids_of_each(any_kind: Tokenizer, texts: list[str]) -> None:
    assert any_kind.encode_batch(texts) == [any_kind.encode(text) for text in texts]


def test_a_batch_with_a_lone_surrogate_is_refused_as_the_text_alone_is(any_kind: Tokenizer) -> None:
    if isinstance(any_kind, ByteTokenizer):
        assert any_kind.encode_batch(["\ud800"]) == [any_kind.encode("\ud800")]
        return
    with pytest.raises(ValueError, match="lone surrogate"):
        any_kind.encode_batch(["fine", "\ud800"])


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(data=st.data())
def test_a_stream_of_any_ids_adds_up_to_the_decoded_text(any_kind: Tokenizer, data: st.DataObject) -> None:
    likely = any_kind.encode(" é日😀\x01 ab\n") + sorted(any_kind.special_ids)[:3]
    ids = data.draw(st.lists(st.one_of(st.sampled_from(likely), st.integers(0, any_kind.vocab_size - 1)), max_size=14))
    stream = TextStream(any_kind)
    pieces = [stream.push(index) for index in ids]
    assert "".join(pieces) + stream.finish() == any_kind.decode(ids)


def test_a_stream_gives_whole_characters_only(any_kind: Tokenizer) -> None:
    stream = TextStream(any_kind)
    pieces = [stream.push(index) for index in any_kind.encode("é日本😀 and so on")]
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 3


def test_half_a_character_at_the_end_is_a_replacement_character(any_kind: Tokenizer) -> None:
    ids = any_kind.encode("ab日")
    cut = next(size for size in range(len(ids), 0, -1) if "\ufffd" in any_kind.decode(ids[:size]))
    stream = TextStream(any_kind)
    assert "\ufffd" not in "".join(map(stream.push, ids[:cut]))
    assert "\ufffd" in stream.finish()


def test_parts_are_encoded_apart_and_specials_stand_where_they_are_given(any_kind: Tokenizer) -> None:
    parts = [any_kind.eos_id, "the answer", " is", any_kind.eos_id, "42"]
    ids = any_kind.encode_parts(parts)
    assert [len(part) for part in ids if part == [any_kind.eos_id]] == [1, 1]
    assert ids[0] == ids[3] == [any_kind.eos_id]
    assert any_kind.decode(ids[1] + ids[2]) == "the answer is"
    assert any_kind.encode_parts(["the", ""])[1] == []


def test_a_spelled_special_becomes_one_only_when_asked_for(any_kind: Tokenizer) -> None:
    name = any_kind.id_to_piece(any_kind.eos_id)
    assert any_kind.eos_id not in any_kind.encode(f"a{name}b")
    assert any_kind.decode(any_kind.encode(f"a{name}b")) == f"a{name}b"
    assert any_kind.encode_with_specials(f"a{name}b").count(any_kind.eos_id) == 1


def test_raw_bytes_of_ids_add_up_to_the_text(any_kind: Tokenizer) -> None:
    ids = any_kind.encode("é日 and 😀")
    assert b"".join(any_kind.token_bytes(index) or b"" for index in ids).decode().lstrip() == "é日 and 😀"
    assert any_kind.token_bytes(any_kind.eos_id) is None


def test_an_id_outside_the_vocabulary_is_one_sentence(any_kind: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"id \d+ is outside the tokenizer's vocabulary of"):
        TextStream(any_kind).push(any_kind.vocab_size)


def test_pickled_and_saved_tokenizers_come_back_equal(any_kind: Tokenizer, tmp_path: Path) -> None:
    any_kind.encode("the library's objects are not pickled")
    copy = pickle.loads(pickle.dumps(any_kind))
    any_kind.save(tmp_path)
    for other in (copy, load(tmp_path)):
        assert other == any_kind and hash(other) == hash(any_kind) and other.fingerprint == any_kind.fingerprint
        assert other.encode("Hello, 日本!") == any_kind.encode("Hello, 日本!")
        assert (other.bos_id, other.eos_id, other.pad_id, other.vocab_size) == (
            any_kind.bos_id,
            any_kind.eos_id,
            any_kind.pad_id,
            any_kind.vocab_size,
        )
        assert other.special_ids == any_kind.special_ids


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(text=TEXTS)
def test_the_same_tokenizer_as_tokenizer_json_gives_the_same_ids(any_kind: Tokenizer, text: str) -> None:
    text = text.replace("\u2581", "_")
    assert to_huggingface(any_kind).encode(text) == any_kind.encode(text)


@pytest.mark.parametrize("text", ["a" * 30_000, " " * 30_000 + "b", "日本" * 10_000, "!" * 20_000])
def test_very_long_words_round_trip(any_kind: Tokenizer, text: str) -> None:
    assert any_kind.decode(any_kind.encode(text)) == text


def test_lone_surrogates_are_one_sentence_or_round_trip(any_kind: Tokenizer) -> None:
    if any_kind.vocab_size == 259 and any_kind.streaming_style == "bytes":
        assert any_kind.decode(any_kind.encode("ab\ud800")) == "ab\ud800"
        return
    for encode in (any_kind.encode, any_kind.encode_with_specials):
        with pytest.raises(ValueError, match="lone surrogate .* at character 2; UTF-8 cannot hold it"):
            encode("ab\ud800")
    with pytest.raises(TypeError, match="encodes strings, not bytes"):
        any_kind.encode(b"ab")  # type: ignore[arg-type]
