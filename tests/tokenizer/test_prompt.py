"""The template around prompts and responses."""

from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.prompt import PromptTemplate

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
