"""Training and lossless encoding with SentencePiece."""

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.tokenizer import sentencepiece
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer, SentencePieceTraining, train

TRICKY = [
    "",
    " ",
    "  a  ",
    "\n\n ",
    "\t",
    "\r\n",
    "\0",
    "\u2581",
    "a\u2581b",
    " \u2581\u2581 ",
    "é日本😀\u202e",
    "e\u0301",
    "\ufeffa",
    "\ufffd",
]
SPECIAL_TEXTS = ["<s>", "</s>", "<pad>", "<unk>", "<0x41>", "a</s>b"]


@hypothesis.given(text=st.one_of(st.text(), st.text(" \u2581a\n</s>")))
def test_every_text_round_trips_and_makes_no_special(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(4 <= index < tokenizer.vocab_size for index in ids)


@pytest.mark.parametrize("text", TRICKY + SPECIAL_TEXTS)
def test_hard_cases_round_trip_and_make_no_special(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, 3}


def test_digits_are_split(tokenizer: SentencePieceTokenizer) -> None:
    assert [tokenizer.id_to_piece(index) for index in tokenizer.encode("2024")] == ["2", "0", "2", "4"]


def test_every_ascii_character_is_a_piece_even_if_rare(tokenizer: SentencePieceTokenizer) -> None:
    for character in sentencepiece.ASCII:
        assert "".join(map(tokenizer.id_to_piece, tokenizer.encode(f"\n{character}"))) in (f"\n{character}", f"<0x0A>{character}")


def test_specials_have_fixed_ids_and_the_size_is_as_asked(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 2, 600)
    assert tokenizer.decode([1, *tokenizer.encode("ab"), 2, 0]) == "ab"


def test_training_again_gives_the_same_bytes(tokenizer: SentencePieceTokenizer, topics: list[str]) -> None:
    algorithm = "unigram" if b"unigram" in tokenizer.model else "bpe"
    configs = [SentencePieceTraining(vocab_size=400, algorithm=algorithm, max_bytes=30_000) for _ in range(2)]
    first, second = (train(config, iter(topics)) for config in configs)
    assert first.model == second.model
    assert first == second and hash(first) == hash(second)


def test_too_little_text_for_the_vocabulary_is_an_error_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="vocab_size=5000 pieces from 11 characters"):
        train(SentencePieceTraining(vocab_size=5000), ["hello world"])


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text"):
        train(SentencePieceTraining(vocab_size=400), ["", ""])


def test_a_lone_surrogate_is_an_error_that_says_where(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate .* at character 2"):
        tokenizer.encode("ab\ud800")


@hypothesis.given(texts=st.lists(st.text("ab\né😀", max_size=60), max_size=5), size=st.integers(4, 20))
def test_chunks_lose_nothing_and_are_bounded(texts: list[str], size: int) -> None:
    chunks = list(sentencepiece.chunks(texts, size))
    assert "".join(chunks) == "".join(texts)
    assert all(0 < len(chunk.encode()) <= size for chunk in chunks)


def test_the_sample_is_bounded_ordered_and_the_same_every_time() -> None:
    sentences = [f"{number:04}" for number in range(1000)]
    kept = sentencepiece.sample(sentences, 400, seed=0)
    assert len(kept) == 100 and kept == sorted(kept)
    assert kept == sentencepiece.sample(iter(sentences), 400, seed=0)
    assert sentencepiece.sample(sentences, 10_000, seed=0) == sentences
