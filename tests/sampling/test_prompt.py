"""What generation starts from."""

import pytest

from lmx.sampling.prompt import encode_messages, encode_text
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat

BYTES = ByteTokenizer()
PLAIN = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
WITH_TOOLS = "{% if tools %}<s>{% for tool in tools %}{{ tool['name'] }}{% endfor %}</s>{% endif %}" + PLAIN
USER = [{"role": "user", "content": "a"}]


class WithoutBos(ByteTokenizer):
    """As Qwen's: documents begin with nothing."""

    bos_id = None  # type: ignore[assignment]


def test_bos_stands_in_front_where_the_vocabulary_has_one() -> None:
    assert encode_text(BYTES, "a</s>") == [1, *BYTES.encode("a</s>")]
    assert encode_text(WithoutBos(), "a") == BYTES.encode("a")


@pytest.mark.parametrize(("text", "sentence"), [("", "the prompt is empty"), ("a\udcff", "lone surrogate .* at character 1")])
def test_what_is_no_prompt_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        encode_text(BYTES, text)


def test_messages_end_where_the_assistant_begins() -> None:
    assert encode_messages(BYTES, Chat(PLAIN), USER) == BYTES.encode_with_specials("<s>a</s><s>")


def test_tools_are_shown_by_templates_that_know_them_and_refused_by_others() -> None:
    tools = [{"name": "search"}]
    assert encode_messages(BYTES, Chat(WITH_TOOLS), USER, tools=tools) == BYTES.encode_with_specials("<s>search</s><s>a</s><s>")
    with pytest.raises(ValueError, match="template has no place for tools; leave them out"):
        encode_messages(BYTES, Chat(PLAIN), USER, tools=tools)


def test_without_a_chat_format_or_a_message_there_is_no_conversation() -> None:
    with pytest.raises(ValueError, match="no chat template.*--chat-template chatml, llama3 or gemma"):
        encode_messages(BYTES, None, USER)
    with pytest.raises(ValueError, match="there is no message"):
        encode_messages(BYTES, Chat(PLAIN), [])
