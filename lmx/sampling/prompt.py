"""Text and messages to the ids that generation starts from."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.text import check_text, flat


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text to be continued, BOS in front where the vocabulary has one; nothing in it becomes a special token.

    Raises:
      ValueError: the text is empty, or holds a lone surrogate: it was no UTF-8.
    """
    if not text:
        raise ValueError("the prompt is empty; write at least one character")
    check_text(text)
    return flat(tokenizer.encode_parts([text] if tokenizer.bos_id is None else [tokenizer.bos_id, text]))


def encode_messages(
    tokenizer: Tokenizer,
    chat: Chat | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Ids of a conversation, up to where the assistant's next turn begins.

    Raises:
      ValueError: there is no chat template, no message, tools that the template does not show, or messages that it refuses.
    """
    if chat is None:
        raise ValueError(
            "this model has no chat template, so it can't read messages; pick one with --chat-template chatml, llama3 or gemma, or "
            "give it plain text to continue"
        )
    if not messages:
        raise ValueError("there is no message; give at least one")
    rendered = chat.encode(tokenizer, messages, add_generation_prompt=True, tools=tools)
    if tools and rendered.text == chat.encode(tokenizer, messages, add_generation_prompt=True).text:
        raise ValueError("the model's chat template has no place for tools; leave them out")
    return rendered.ids
