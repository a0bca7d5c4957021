"""The template around prompts and responses."""

from collections.abc import Callable

from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.prompt import PromptTemplate
from lmx.tokenizer.protocol import Tokenizer

TOKENIZER = ByteTokenizer()


def test_the_prompt_is_framed_behind_bos() -> None:
    ids = PromptTemplate().prompt_ids(TOKENIZER, "1 + 1?")
    assert ids[0] == TOKENIZER.bos_id
    assert TOKENIZER.decode(ids) == "Q: 1 + 1?\nA:"


def test_a_generated_response_is_read_up_to_eos_without_the_lead() -> None:
    template = PromptTemplate()
    ids = template.response_ids(TOKENIZER, "2")
    assert ids[-1] == TOKENIZER.eos_id
    assert template.response_text(TOKENIZER, [*ids, *TOKENIZER.encode("rest")]) == "2"
    assert template.response_text(TOKENIZER, ids[:-1]) == "2"


def test_a_dummy_prefix_does_not_add_a_space_to_the_response(read_golden: Callable[[str], tuple[Tokenizer, Chat]]) -> None:
    tokenizer, _ = read_golden("llama2")
    template = PromptTemplate()
    ids = [*template.prompt_ids(tokenizer, "1 + 1?"), *template.response_ids(tokenizer, "2")]
    assert tokenizer.decode(ids) == "Q: 1 + 1?\nA: 2"
    assert template.response_text(tokenizer, template.response_ids(tokenizer, "2")) == "2"
