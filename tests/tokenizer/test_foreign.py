"""Folders of other frameworks: which file says what, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from lmx.tokenizer import foreign
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.huggingface import HuggingFaceTokenizer
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTokenizer
from lmx.tokenizer.tiktoken import TiktokenTokenizer

GOLDENS = Path(__file__).parent / "goldens"
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with one vocabulary file of the goldens, and the JSON files given."""

    def make(source: str, name: str | None = None, **files: Any) -> Path:
        original = next((GOLDENS / source).glob("tokenizer.*"))
        shutil.copy(original, tmp_path / (name or original.name))
        for key, value in files.items():
            (tmp_path / f"{key}.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path

    return make


def roles(tokenizer: Tokenizer) -> tuple[str | None, str, str]:
    names = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    bos, eos, pad = (None if index is None else tokenizer.id_to_piece(index) for index in names)
    assert eos is not None and pad is not None
    return bos, eos, pad


def test_kinds_are_told_apart_by_content(folder: Folder) -> None:
    assert isinstance(foreign.read(GOLDENS / "qwen2")[0], HuggingFaceTokenizer)
    assert isinstance(foreign.read(GOLDENS / "gemma")[0], SentencePieceTokenizer)
    llama, _ = foreign.read(GOLDENS / "llama3")
    assert isinstance(llama, TiktokenTokenizer) and llama.style == "llama3"
    qwen, chat = foreign.read(folder("llama3", "qwen.tiktoken", generation_config={"chat_format": "chatml", "eos_token_id": 500}))
    assert isinstance(qwen, TiktokenTokenizer) and qwen.style == "qwen"
    assert chat is not None and chat.template == "chatml" and chat.stop_ids == (502,)


def test_metas_own_folder_needs_no_configuration(folder: Folder) -> None:
    tokenizer, chat = foreign.read(folder("llama3"))
    assert roles(tokenizer) == ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>") and chat is None


def test_the_first_of_several_ends_is_eos_and_all_of_them_stop_the_chat(folder: Folder) -> None:
    config = {
        "eos_token": "<|im_end|>",
        "bos_token": None,
        "chat_template": "{{ messages }}",
        "pad_token": {"content": "<|im_start|>"},
    }
    path = folder("qwen2", tokenizer_config=config, generation_config={"eos_token_id": [500, 502]}, config={"eos_token_id": 501})
    tokenizer, chat = foreign.read(path)
    assert roles(tokenizer) == (None, "<|endoftext|>", "<|im_start|>")
    assert chat is not None and chat.stop_ids == (500, 502)
    assert dict(chat.variables)["eos_token"] == "<|im_end|>"


def test_a_bos_that_the_tokenizer_configuration_denies_is_none_whatever_config_json_says(folder: Folder) -> None:
    path = folder("qwen2", tokenizer_config={"bos_token": None, "eos_token": "<|im_end|>"}, config={"bos_token_id": 500})
    assert foreign.read(path)[0].bos_id is None
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert foreign.read(path)[0].bos_id == 500


def test_special_tokens_map_is_read_where_the_configuration_is_silent(folder: Folder) -> None:
    path = folder("qwen2", special_tokens_map={"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"})
    assert roles(foreign.read(path)[0]) == (None, "<|im_end|>", "<|endoftext|>")


def test_a_pad_that_the_vocabulary_lacks_is_eos(folder: Folder) -> None:
    path = folder("qwen2", tokenizer_config={"eos_token": "<|im_end|>", "pad_token": "[PAD]"}, config={"pad_token_id": 32_000})
    assert foreign.read(path)[0].pad_id == 502


def test_tokens_that_only_the_configuration_calls_special_are_special(folder: Folder) -> None:
    config = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<tool_call>"]}
    plain, _ = foreign.read(folder("qwen2", tokenizer_config={"eos_token": "<|im_end|>"}))
    (index,) = plain.encode("<tool_call>")
    tokenizer, _ = foreign.read(folder("qwen2", tokenizer_config=config))
    assert index in tokenizer.special_ids and index not in tokenizer.encode("<tool_call>")
    assert tokenizer.encode_with_specials("<tool_call>") == [index]


def test_tokens_that_only_the_configuration_adds_are_added(folder: Folder) -> None:
    decoder = {"505": {"content": "<|new|>", "special": True}, "506": {"content": "plain_new", "special": False}}
    tokenizer, _ = foreign.read(folder("qwen2", tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": decoder}))
    assert tokenizer.vocab_size == 507
    assert tokenizer.encode("plain_new") == [506] and 505 not in tokenizer.encode("<|new|>")


def test_sentencepiece_models_take_specials_behind_their_vocabulary(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "llama2" / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "pad_token": "<pad>"}')
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 600, "<|im_end|>": 601}')
    tokenizer, _ = foreign.read(tmp_path)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (600, 602)
    assert tokenizer.encode_with_specials("<|im_end|>") == [601]
    (tmp_path / "added_tokens.json").write_text('{"word": 600}')
    with pytest.raises(ValueError, match="'word' was added to tokenizer.model as ordinary text, which needs a tokenizer.json"):
        foreign.read(tmp_path)


def test_chat_templates_come_from_their_own_file_first_and_of_several_the_default(folder: Folder) -> None:
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ messages }}"}]
    path = folder(
        "qwen2", tokenizer_config={"eos_token": "<|im_end|>", "chat_template": named}, chat_template={"chat_template": "{#"}
    )
    assert (foreign.read(path)[1] or Chat("{")).template == "{{ messages }}"
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert (foreign.read(path)[1] or Chat("{")).template == "{#"
    (path / "chat_template.jinja").write_text("{{ 1 }}<|endoftext|>", encoding="utf-8")
    chat = foreign.read(path)[1]
    assert chat is not None and chat.template == "{{ 1 }}<|endoftext|>"


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Folder) -> None:
    path = folder("qwen2", tokenizer_config={"eos_token": "<|im_end|>"})
    assert foreign.read(path, vocab_size=505)[0].vocab_size == 505
    with pytest.raises(ValueError, match="the tokenizer has 505 ids and the model's embedding only 504 rows"):
        foreign.read(path, vocab_size=504)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file says which token ends a text"),
        ({"tokenizer_config": "{"}, "tokenizer_config.json is not valid JSON"),
        ({"config": "[]"}, "config.json holds a list, not an object"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token is '5', not the text of a token"),
        ({"generation_config": {"eos_token_id": "x"}}, "eos_token_id is x, not an id"),
        ({"generation_config": {"eos_token_id": [1, None]}}, "eos_token_id is .*, not an id or a list of ids"),
        ({"generation_config": {"eos_token_id": 505}}, "eos_id=505 is outside the tokenizer's vocabulary of 505"),
        (
            {"tokenizer_config": {"eos_token": "<|im_end|>", "chat_template": 5}},
            "chat_template in tokenizer_config.json is neither",
        ),
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>", "chat_template": "{{ 1 }}"},
                "generation_config": {"eos_token_id": [500, 999]},
            },
            "eos_token_id=999 is outside the tokenizer's vocabulary of 505",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": []}, "config": {"eos_token_id": 1}}, None),
        ({"tokenizer_config": {"additional_special_tokens": "abc"}}, "additional_special_tokens is 'abc', not a list of tokens"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder in tokenizer_config.json is not an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "has the entry 'x'"),
        ({"added_tokens": {"a": -1}}, "added_tokens.json gives 'a' the id '-1'"),
        (
            {
                "tokenizer_config": {
                    "eos_token": "<|im_end|>",
                    "added_tokens_decoder": {"7": {"content": "<|im_end|>", "special": True}},
                }
            },
            r"gives '<\|im_end\|>' the id 7, and tokenizer.json 502",
        ),
    ],
)
def test_broken_configurations_are_one_sentence(folder: Folder, files: dict[str, Any], message: str | None) -> None:
    path = folder("qwen2", **files)
    if message is None:
        assert foreign.read(path)[0].eos_id == 1
        return
    with pytest.raises(ValueError, match=message) as error:
        foreign.read(path)
    assert str(path) in str(error.value)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 600), st.sampled_from(["<|im_end|>", "<new>", "default", "", "\ud800"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["content", "special", "name", "template", "505", "7"]), inner)
    ),
    max_leaves=6,
)
KEYS = ["eos_token", "bos_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "chat_template"]


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(config=st.dictionaries(st.sampled_from(KEYS), JSON), ids=JSON)
def test_any_configuration_is_read_or_refused_with_a_sentence(folder: Folder, config: dict[str, Any], ids: Any) -> None:
    path = folder("qwen2", tokenizer_config=config, generation_config={"eos_token_id": ids, "pad_token_id": 3})
    try:
        tokenizer, _ = foreign.read(path)
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<|im_end|> <new>"))
    except ValueError as error:
        assert str(path) in str(error)


def test_folders_without_a_vocabulary_and_damaged_ones_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no tokenizer: expected tokenizer.json, tokenizer.model or one"):
        foreign.read(tmp_path)
    for name, data, message in [
        ("tokenizer.model", b"\x00\x01", "not a SentencePiece model"),
        ("tokenizer.model", b"YQ== 0\n", "lack 255 of the 256 bytes"),
        ("tokenizer.json", b"\xff{", "not valid JSON"),
        ("tokenizer.json", b"[" * 100_000, "not valid JSON"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            foreign.read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with (tmp_path / "tokenizer.json").open("r+b") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ValueError, match="314572800 bytes, more than any tokenizer needs"):
        foreign.read(tmp_path)


def test_every_kind_is_written_and_read_back(any_kind: Tokenizer, tmp_path: Path) -> None:
    foreign.write(tmp_path, any_kind, None)
    tokenizer, chat = foreign.read(tmp_path)
    assert chat is None
    assert roles(tokenizer) == roles(any_kind)
    for text in ("Hello, 日本 </s> <b>\n\n\n", "  a  ", "x" * 100, "<|im_end|>"):
        assert tokenizer.encode(text) == any_kind.encode(text)


def test_a_model_that_no_tokenizer_json_expresses_is_written_as_it_is(tmp_path: Path) -> None:
    tokenizer, _ = foreign.read(GOLDENS / "gemma")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    prefixed = SentencePieceTokenizer(tokenizer.model + b"\x1a\x02\x18\x01", False, tokenizer.specials, tokenizer.roles)
    assert prefixed.parsed.add_dummy_prefix
    files = foreign.write(tmp_path, prefixed, None)
    assert "tokenizer.json" not in files and (tmp_path / "tokenizer.model").read_bytes() == prefixed.model
    assert foreign.read(tmp_path)[0].encode("a b") == prefixed.encode("a b")


def test_the_byte_tokenizer_keeps_its_ids_as_tokenizer_json(tmp_path: Path) -> None:
    foreign.write(tmp_path, ByteTokenizer(), Chat("{{ messages }}", (2,)))
    tokenizer, chat = foreign.read(tmp_path)
    assert tokenizer.encode("é<s>") == ByteTokenizer().encode("é<s>")
    assert chat is not None and chat.stop_ids == (2,)
