"""Foreign tokenizers against what transformers makes of them, recorded by tools/record_tokenizer_goldens.py."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lmx.tokenizer import foreign
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.streaming import TextStream

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["gemma", "llama2", "llama3", "qwen2"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, Tokenizer, Chat, dict[str, Any]]:
    tokenizer, chat = foreign.read(GOLDENS / request.param)
    assert chat is not None
    return request.param, tokenizer, chat, json.loads((GOLDENS / request.param / "expected.json").read_text())


def test_plain_text_has_the_ids_of_transformers(case: tuple[str, Tokenizer, Chat, dict[str, Any]]) -> None:
    _, tokenizer, _, expected = case
    for text, ids in zip(expected["texts"], expected["plain"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.special_ids.isdisjoint(ids)


def test_specials_in_text_have_the_ids_of_transformers_when_asked_for(case: tuple[str, Tokenizer, Chat, dict[str, Any]]) -> None:
    _, tokenizer, _, expected = case
    for text, ids in zip(expected["texts"], expected["special"], strict=True):
        assert tokenizer.encode_with_specials(text) == ids, text


def test_decoding_gives_the_text_of_transformers(case: tuple[str, Tokenizer, Chat, dict[str, Any]]) -> None:
    name, tokenizer, _, expected = case
    for text, ids, decoded in zip(expected["texts"], expected["plain"], expected["decoded"], strict=True):
        assert tokenizer.decode(ids) == decoded
        promised = text.replace("\u2581", " ") if name in ("gemma", "llama2") else text
        assert decoded == (unicodedata.normalize("NFC", promised) if name == "qwen2" else promised)
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == decoded


def test_chats_have_the_text_ids_and_mask_of_transformers(case: tuple[str, Tokenizer, Chat, dict[str, Any]]) -> None:
    _, tokenizer, chat, expected = case
    for entry in expected["chats"]:
        rendered = chat.encode(tokenizer, entry["messages"], add_generation_prompt=entry["prompt"], tools=entry["tools"])
        assert rendered.text == entry["text"]
        assert rendered.ids == entry["ids"]
        assert [int(written) for written in rendered.assistant_mask] == entry["mask"]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_read_back_with_the_same_ids_and_roles(name: str, tmp_path: Path) -> None:
    tokenizer, chat = foreign.read(GOLDENS / name)
    files = foreign.write(tmp_path, tokenizer, chat)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    again, chat_again = foreign.read(tmp_path)
    assert chat_again is not None and chat is not None
    assert (chat_again.template, chat_again.stop_ids) == (chat.template, chat.stop_ids)
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    for text in json.loads((GOLDENS / name / "expected.json").read_text())["texts"]:
        assert again.encode(text) == tokenizer.encode(text)
    for source in (GOLDENS / name).glob("tokenizer.*"):
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()
