"""Tokenizers in GGUF metadata: there and back with the same ids, and metadata that is refused."""

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.tokenizer import chat as chats
from lmx.tokenizer import gguf
from lmx.tokenizer.conversion import to_huggingface
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer
from lmx.tokenizer.tiktoken import TiktokenTokenizer

P = "tokenizer.ggml."
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two  spaces\n\n\n",
    "日本語 é e\u0301 😀",
    "<b></s><|im_end|><start_of_turn>",
    "12345 3.14",
    "x" * 99,
]


@pytest.fixture(scope="session")
def pair(any_kind: Tokenizer) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and what GGUF makes of it."""
    again, chat = gguf.from_metadata(gguf.to_metadata(any_kind, None))
    assert chat is None
    return any_kind, again


def test_ids_and_roles_come_back(pair: tuple[Tokenizer, Tokenizer]) -> None:
    tokenizer, again = pair
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert again.vocab_size == tokenizer.vocab_size
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text), text
        assert again.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(text=st.text())
def test_ids_of_any_text_come_back(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    tokenizer, again = pair
    text = text.replace("\u2581", "_")
    # tiktoken's ranks of Llama 3 do not normalise, nor does GGUF; Qwen's do, and so does its name in GGUF.
    assert again.encode(text) == tokenizer.encode(text)


def test_metadata_comes_back(pair: tuple[Tokenizer, Tokenizer]) -> None:
    _, again = pair
    metadata = gguf.to_metadata(again, None)
    assert gguf.to_metadata(gguf.from_metadata(metadata)[0], None) == metadata


def test_forms_are_named_as_other_readers_know_them(any_kind: Tokenizer) -> None:
    metadata = gguf.to_metadata(any_kind, None)
    if isinstance(any_kind, TiktokenTokenizer):
        assert (metadata[f"{P}model"], metadata[f"{P}pre"]) == ("gpt2", "llama-bpe")
    if isinstance(any_kind, SentencePieceTokenizer):
        assert metadata[f"{P}model"] == "llama" and metadata[f"{P}add_space_prefix"] == any_kind.parsed.add_dummy_prefix
    assert metadata[f"{P}add_bos_token"] == (any_kind.bos_id is not None)
    assert len(metadata[f"{P}tokens"]) == len(metadata[f"{P}token_type"]) == any_kind.vocab_size
    assert all(metadata[f"{P}token_type"][index] in (2, 3) for index in any_kind.special_ids)


def test_the_chat_template_comes_along_without_its_generation_blocks(read_golden: Any) -> None:
    tokenizer, _ = read_golden("llama3")
    chat = chats.built_in("llama3", tokenizer)
    metadata = gguf.to_metadata(tokenizer, chat)
    assert "generation" not in metadata["tokenizer.chat_template"].replace("add_generation_prompt", "")
    assert (metadata[f"{P}eos_token_id"], metadata[f"{P}eom_token_id"]) == chat.stop_ids
    assert f"{P}eot_token_id" not in metadata  # it is EOS
    again, chat_again = gguf.from_metadata(metadata)
    assert chat_again is not None and set(chat_again.stop_ids) == {tokenizer.eos_id, *chat.stop_ids}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert chat_again.encode(again, messages) == chat.encode(tokenizer, messages)


def byte_level() -> dict[str, Any]:
    """A byte-level vocabulary of two letters, their pair, a special, an ordinary added token and an unused one."""
    texts = ["a", "b", "ab", "<|end|>", "<b>", "[PAD5]"]
    return {
        f"{P}model": "gpt2",
        f"{P}pre": "gpt-2",
        f"{P}tokens": texts,
        f"{P}token_type": [1, 1, 1, 3, 4, 5],
        f"{P}merges": ["a b"],
        f"{P}eos_token_id": 3,
    }


def pieces() -> dict[str, Any]:
    """A SentencePiece vocabulary without byte fallback."""
    texts = ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a"]
    return {
        f"{P}model": "llama",
        f"{P}tokens": texts,
        f"{P}scores": [0.0, 0.0, 0.0, -1.0, -2.0, -0.5],
        f"{P}token_type": [2, 3, 3, 1, 1, 1],
        f"{P}bos_token_id": 1,
        f"{P}eos_token_id": 2,
    }


def test_token_types_decide_what_text_matches() -> None:
    tokenizer, _ = gguf.from_metadata(byte_level())
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.special_ids == {3}
    assert tokenizer.encode("ab<b>ab") == [2, 4, 2]
    assert tokenizer.encode_with_specials("ab<|end|>") == [2, 3]


def test_spaces_in_pieces_are_sentencepieces_own_symbol() -> None:
    metadata = pieces()
    metadata[f"{P}tokens"] = [*metadata[f"{P}tokens"], "  "]
    metadata[f"{P}scores"] = [*metadata[f"{P}scores"], 0.0]
    metadata[f"{P}token_type"] = [*metadata[f"{P}token_type"], 4]
    metadata[f"{P}add_space_prefix"] = False
    tokenizer, _ = gguf.from_metadata(metadata)
    assert tokenizer.encode("a  a") == [4, 6, 4]


def test_missing_prefix_flag_means_a_prefix() -> None:
    assert gguf.from_metadata(pieces())[0].encode("a") == [5]


def change(metadata: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**metadata, (key if key.startswith("tokenizer.") else P + key): value}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "model is None; lmx reads 'llama'"),
        (change(pieces(), "model", "t5"), "model is 't5'"),
        (change(byte_level(), "pre", "chameleon"), "pre is 'chameleon'; lmx knows"),
        (change(byte_level(), "tokens", None), "tokens is missing, not an array"),
        (change(byte_level(), "tokens", "abcdef"), "tokens is a str, not an array"),
        (change(byte_level(), "tokens", []), "tokens is empty"),
        (change(byte_level(), "tokens", ["a", 1]), r"tokens\[1\] is '1', of type int"),
        (change(byte_level(), "tokens", ["a", "b", "a", "<|end|>", "c", "d"]), "tokens has 'a' twice, as 0 and 2"),
        (change(byte_level(), "tokens", ["a", "b", "ab", "<|end|>", "", "d"]), r"tokens\[4\] is empty"),
        (change(byte_level(), "token_type", [1, 1]), "token_type has 2 entries and tokenizer.ggml.tokens 6"),
        (change(byte_level(), "token_type", [1, 1, 1, 9, 1, 1]), r"token_type\[3\] is 9; known are 1..6"),
        (change(byte_level(), "token_type", [True] * 6), r"token_type\[0\] is 'True', of type bool"),
        (change(byte_level(), "merges", ["a q"]), r"merges\[0\] is 'a q', not two tokens that make a third"),
        (change(byte_level(), "merges", ["ab"]), r"merges\[0\] is 'ab', not two tokens"),
        (change(byte_level(), "merges", ["b a"]), r"merges\[0\] is 'b a', not two tokens"),
        (change(byte_level(), "eos_token_id", 6), "eos_token_id is '6'; it must be an id below the 6 tokens"),
        (change(byte_level(), "eos_token_id", None), "eos_token_id is missing: nothing says which token ends a text"),
        (change(byte_level(), "bos_token_id", -1), "bos_token_id is '-1'"),
        (change(byte_level(), "tokenizer.chat_template", 5), "chat_template is a int, not a text"),
        (change(change(byte_level(), "tokenizer.chat_template", "{{ 1 }}"), "eot_token_id", 77), "eot_token_id is '77'"),
        (change(pieces(), "scores", [0.0]), "scores has 1 entries"),
        (change(pieces(), "scores", [0.0, 0.0, 0.0, float("nan"), 0.0, 0.0]), r"scores\[3\] is nan, not a finite number"),
        (change(pieces(), "token_type", [1, 3, 3, 1, 1, 1]), "has no unknown token"),
        (change(pieces(), "token_type", [2, 3, 3, 6, 1, 1]), r"tokens\[3\] is a byte and .*, not <0x00>..<0xFF>"),
        (
            change(pieces(), "tokens", ["<unk>", "<s>", "</s>", "<0x41>", "a", "b"]) | {f"{P}token_type": [2, 3, 3, 6, 1, 1]},
            "SentencePiece",
        ),
        (change(pieces(), "add_space_prefix", 1), "add_space_prefix is '1', not true or false"),
        (change(pieces(), "precompiled_charsmap", [999]), "precompiled_charsmap has numbers that are no bytes"),
    ],
)
def test_broken_metadata_is_one_sentence(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf.from_metadata(metadata)


def test_what_gguf_cannot_express_is_refused(topics: list[str], tokenizer: SentencePieceTokenizer, read_golden: Any) -> None:
    if tokenizer.parsed.algorithm.name == "UNIGRAM":
        for form in (tokenizer, to_huggingface(tokenizer)):
            with pytest.raises(ValueError, match="has no form in GGUF"):
                gguf.to_metadata(form, None)
    qwen, _ = read_golden("qwen2")
    other = HuggingFaceTokenizer(qwen.definition.replace(rb"\\p{N}", rb"\\p{Nd}"), qwen.roles)
    with pytest.raises(ValueError, match="GGUF has no name for the words that this tokenizer.json cuts texts into"):
        gguf.to_metadata(other, None)
    lower = HuggingFaceTokenizer(qwen.definition.replace(b'"type": "NFC"', b'"type": "Lowercase"'), qwen.roles)
    with pytest.raises(ValueError, match="with the normalizer .*Lowercase.* has no form in GGUF"):
        gguf.to_metadata(lower, None)
