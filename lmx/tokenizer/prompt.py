"""How a prompt and its response become ids, once for training, generation and evaluation."""

import dataclasses

from lmx.tokenizer.protocol import Tokenizer, start_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The text around a prompt.

    Prompt and response are encoded apart, so the ids before the response are the same in training and in generation; the response
    as text in the middle of a text, where no vocabulary puts a space in front.

    Attributes:
      before: text in front of the prompt.
      after: text behind the prompt.
      lead: text in front of the response. A space belongs here and not in `after`: SentencePiece joins a space to the word behind
        it.
    """

    before: str = "Q: "
    after: str = "\nA:"
    lead: str = " "

    def prompt_ids(self, tokenizer: Tokenizer, prompt: str) -> list[int]:
        """BOS and the framed prompt: what generation starts from."""
        return [start_id(tokenizer), *tokenizer.encode(self.before + prompt + self.after)]

    def response_ids(self, tokenizer: Tokenizer, response: str) -> list[int]:
        """The response and EOS: what is learned."""
        return [*tokenizer.encode_parts([self.before + self.after, self.lead + response])[-1], tokenizer.eos_id]

    def response_text(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        """Text of a generated response: ids up to the first EOS, without the lead."""
        end = ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids)
        return tokenizer.decode(ids[:end]).removeprefix(self.lead)
